"""Who may see the page, which of its routes there are, and what a browser may load on it. Needs no gradio."""

from __future__ import annotations

import hashlib
import hmac
import html
import re
import time
from pathlib import Path

from fastapi import APIRouter, Form
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightbridge.serving.api.api_error import ApiError

PREFIX = "/web"
LOGIN = "/login"
COOKIE = "sightbridge"
LOGIN_SECONDS = 12 * 3600
"""So long a browser need not send the key again."""
ROUTES = re.compile(
    PREFIX
    + r"/(?:(?:assets|static|svelte)/.*|theme\.css|favicon\.ico|manifest\.json|config/?"
    + r"|gradio_api/(?:queue/(?:join|data)|heartbeat/[^/]*|component_server/?|theme\.css|cancel))?"
)
"""Of gradio's routes those that the page needs. It has others: proxies (``file=http://...`` is one too), monitoring, an
editor of the page's code, and uploads to files, of which there is no bound: pictures come as calls of their component
(``uploads.py``), and no file is given out."""
STREAMS = re.compile(PREFIX + r"/gradio_api/(?:queue/data|heartbeat/[^/]*)")
"""Streams that last as long as a page is open. What is answered by them is counted where it is answered."""
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # the page's settings and its components' own scripts
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
"""Nothing from elsewhere, and nothing to elsewhere."""

ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<path d="M2 16Q16 2 30 16Q16 30 2 16Z" fill="#1f5fbf"/><circle cx="16" cy="16" r="5" fill="#fff"/></svg>"""


class PageGuard:
    """A layer around the page: only routes that it needs, for nobody's page but our own.

    gradio lets pages of some other origins in (CORS); here a request with another ``Origin`` than the host it goes to
    is refused, so that no page elsewhere can use a server that needs no key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not is_page(scope["path"]):
            await self.app(scope, receive, send)
            return
        if scope["path"] == PREFIX:
            await redirect(f"{PREFIX}/", scope)(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = None
        if not ROUTES.fullmatch(scope["path"]):
            refused = ApiError(404, "There is no such page.")
        elif (origin := headers.get("origin")) and origin.partition("://")[2] != headers.get("host"):
            refused = ApiError(403, "The page answers to itself only; a proxy must pass the Host header on.")
        if refused:
            await refused.response()(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                protect(MutableHeaders(scope=message))
            await send(message)

        await self.app(scope, receive, send_with_policy)


def protect(headers: MutableHeaders) -> None:
    """Let a browser load nothing from elsewhere, guess no types, and tell nobody where it is."""
    headers["Content-Security-Policy"] = POLICY
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    for name in [name for name in headers if name.startswith("access-control-")]:
        del headers[name]


def is_page(path: str) -> bool:
    """Whether a path is one of the page's."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def is_stream(path: str) -> bool:
    """Whether a path is one that stays open as long as the page does."""
    return bool(STREAMS.fullmatch(path))


def has_login(scope: Scope, key: str) -> bool:
    """Whether a request for the page brings what ``POST /login`` gave out."""
    cookie = cookie_parser(Headers(scope=scope).get("cookie", "")).get(COOKIE, "")
    until, _, _ = cookie.partition(".")
    return (
        until.isascii()
        and until.isdigit()
        and len(until) < 20
        and int(until) > time.time()
        and hmac.compare_digest(cookie.encode(), _sign(until, key).encode())
    )


def login_routes(key: str | None) -> APIRouter:
    """``/`` leads to the page; ``/login`` asks for the key, which then no request of the page carries any more.

    What it gives out is signed with the key, so that all replicas of a server take it.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def to_page(http: Request) -> Response:
        return redirect(f"{PREFIX}/", http.scope)

    @router.get("/favicon.ico")
    async def icon() -> Response:
        return Response(ICON, media_type="image/svg+xml")

    @router.get(LOGIN)
    async def ask_for_key(http: Request) -> Response:
        return redirect(f"{PREFIX}/", http.scope) if key is None else _form()

    @router.post(LOGIN)
    async def take_key(http: Request, given: str = Form("", alias="key", max_length=1000)) -> Response:
        if key is not None and not hmac.compare_digest(given.strip().encode(), key.encode()):
            return _form("That is not this server's key.", 401)
        answer = redirect(f"{PREFIX}/", http.scope)
        if key is not None:
            until = str(int(time.time()) + LOGIN_SECONDS)
            is_safe = http.url.scheme == "https"  # the proxy's word, or a browser would not keep it
            answer.set_cookie(COOKIE, _sign(until, key), path=PREFIX, secure=is_safe, httponly=True, samesite="strict")
        return answer

    return router


def redirect(path: str, scope: Scope) -> Response:
    """To another path, with what stands behind the ``?`` of this one, such as a model's name."""
    asked = scope["query_string"].decode("latin-1")
    return RedirectResponse(f"{path}?{asked}" if asked else path, 303)


def _sign(until: str, key: str) -> str:
    return f"{until}.{hmac.new(key.encode(), f'{COOKIE} {until}'.encode(), hashlib.sha256).hexdigest()}"


def _form(problem: str = "", status: int = 200) -> HTMLResponse:
    page = (Path(__file__).parent / "login.html").read_text("utf-8")
    answer = HTMLResponse(page.replace("{problem}", html.escape(problem)), status)
    protect(answer.headers)
    return answer
