"""The gate in front of all routes: who may ask, how much at once, and how large."""

from __future__ import annotations

import asyncio
import contextlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.body import MAX_NUMBERS
from sightbridge.serving.api.page_access import LOGIN, PREFIX, has_login, is_page, is_stream, redirect
from sightbridge.serving.api.state import State

OPEN_PATHS = ("/healthz",)
"""What needs no key, and is answered however much there is to do."""
BODIES = {
    "/v1/chat/completions": "application/json",
    "/score": "application/json",
    "/features": "application/json",
    "/v1/files": "multipart/form-data",
    "/worker_generate_stream": "application/json",
    "/get_worker_address": "application/json",
    LOGIN: "application/x-www-form-urlencoded",
    f"{PREFIX}/gradio_api/queue/join": "application/json",
}
"""What is posted where."""
SHORT_BODIES = {LOGIN: 2**13, f"{PREFIX}/gradio_api/queue/join": 2**22}
"""Bytes of bodies that hold no pictures: a login, which is read of those who have no key; an event of the page."""
MORE_VALUES = 10_000
"""Values in a body of JSON beside numbers of regions and commas in texts; each takes some 100 bytes once it is read."""


class Gate:
    """Lets requests through that may be handled, with their whole body.

    A body is read here, so that everything behind has it in memory and bounded. Bodies must say that they are JSON: a
    page in a browser can send that to another origin only if the server agrees, which this one never does.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        state, headers = self.state, Headers(scope=scope)
        try:
            self._check(scope, headers)
        except ApiError as error:
            await self._discard(receive)
            asks_page = state.shows_page and scope["path"] in ("/", PREFIX, f"{PREFIX}/")
            response = redirect(LOGIN, scope) if asks_page and error.status == 401 else error.response()
            await response(scope, receive, send)
            return
        if is_stream(scope["path"]):
            await self.app(scope, _Leaving(receive, state.ending), send)
            return
        with state.handling():
            try:
                body = await self._read(scope["path"], receive)
                self._check_values(scope["path"], body)
                await self.app(scope, _Replay(body, receive), send)
            except ApiError as error:
                await error.response()(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Everything that is known before the body is read."""
        state, settings = self.state, self.state.settings
        host = _host_name(headers.get("host", ""))
        if settings.allowed_hosts and host not in settings.allowed_hosts:
            raise ApiError(
                400, f"Requests for the host '{host[:100]}' are not answered; --allow-host names others.", code="host"
            )
        if state.api_key is not None and not _may_ask(scope, headers, state.api_key):
            raise ApiError(401, "Send the server's key in a header: Authorization: Bearer KEY.", code="invalid_api_key")
        if state.draining:
            raise ApiError(503, "This server is about to end; ask another one, or later.", retry_after=5)
        if state.in_flight >= settings.max_in_flight:
            raise ApiError(
                429, f"{state.in_flight} requests are being handled already.", code="too_many_requests", retry_after=1
            )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        wanted = BODIES.get(scope["path"])
        if scope["method"] == "POST" and wanted and kind != wanted:
            raise ApiError(415, f"The body's Content-Type must be {wanted}, got '{kind[:100]}'.")
        if (length := headers.get("content-length", "")).isdigit() and int(length[:20]) > self._most(scope["path"]):
            raise self._too_large(scope["path"])

    async def _read(self, path: str, receive: Receive) -> bytes:
        """The whole body."""
        settings, body = self.state.settings, bytearray()
        try:
            async with asyncio.timeout(settings.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(408, "The client left before its request had arrived.")
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._most(path):
                        raise self._too_large(path)
        except TimeoutError:
            raise ApiError(408, f"The body did not arrive within {settings.body_seconds:g} s.") from None
        return bytes(body)

    async def _discard(self, receive: Receive) -> None:
        """Read what else a refused client sends, or closing the connection would take the refusal with it."""
        read, more = 0, True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.state.settings.body_seconds):
                while more and read <= self.state.settings.max_body_bytes:
                    message = await receive()
                    read += len(message.get("body", b""))
                    more = message.get("more_body", False)

    def _check_values(self, path: str, body: bytes) -> None:
        """Refuse JSON that would take many times its size once it is read."""
        settings = self.state.settings
        most = settings.max_regions * MAX_NUMBERS + settings.max_characters + MORE_VALUES
        if BODIES.get(path) == "application/json" and body.count(b",") > most:
            raise ApiError(413, f"The body has more than {most:,} values.", code="too_many_values")

    def _most(self, path: str) -> int:
        most = self.state.settings.max_body_bytes
        return min(SHORT_BODIES.get(path, most), most)

    def _too_large(self, path: str) -> ApiError:
        return ApiError(413, f"The body is larger than {self._most(path):,} bytes.")


class _Replay:
    """Gives out a body that was read already, then whatever else arrives: that the client left."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self._receive()


class _Leaving:
    """Says that the client has left, when it does or the server ends: a stream that has no end ends then."""

    def __init__(self, receive: Receive, ending: asyncio.Event) -> None:
        self._receive = receive
        self._ending = ending
        self._begun = False

    async def __call__(self) -> Message:
        if not self._begun:
            self._begun = True
            return await self._receive()  # the empty body
        waits = [asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._ending.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return await waits[0] if waits[0].done() else {"type": "http.disconnect"}
        finally:
            for wait in waits:
                wait.cancel()


def _may_ask(scope: Scope, headers: Headers, key: str) -> bool:
    """Whether a request brings the key, or, if it is the page's, a login by it. To log in needs none."""
    path = scope["path"]
    return path == LOGIN or _has_key(headers.get("authorization", ""), key) or (is_page(path) and has_login(scope, key))


def _has_key(header: str, key: str) -> bool:
    """Whether the header holds the key; takes as long for a wrong one as for the right one."""
    scheme, _, given = header.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())


def _host_name(header: str) -> str:
    """``localhost`` of ``localhost:8000``, ``[::1]`` of ``[::1]:8000``."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).lower()
