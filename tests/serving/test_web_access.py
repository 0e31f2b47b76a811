"""Who may see the page, and what its routes give out: without a browser."""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from api_server import Live, SteeredEngine, error_of, live, served, wait_until

pytest.importorskip("gradio")

KEY = "a-long-secret"


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(page=True, max_body_bytes=100_000, max_in_flight=4) as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    with live(page=True, api_key=KEY) as running:
        yield running


def test_the_root_leads_to_the_page_which_loads_nothing_from_elsewhere(server: Live) -> None:
    assert server.http.get("/").headers["location"] == "/web/"
    assert server.http.get("/web?model=small").headers["location"] == "/web/?model=small"
    page = server.http.get("/web/")
    assert page.status_code == 200 and "sightbridge" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert server.http.get("/favicon.ico").headers["content-type"].startswith("image/svg")


def test_without_a_page_there_are_none_of_its_routes() -> None:
    with live() as plain:
        for path in ("/", "/web/", "/login", "/web/config"):
            assert error_of(plain.http.get(path))["status"] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/web/gradio_api/file=/etc/passwd",
        "/web/gradio_api/file=../../../../etc/passwd",
        "/web/gradio_api/file=pyproject.toml",
        f"/web/gradio_api/file={Path(__file__)}",
        "/web/gradio_api/file=http://127.0.0.1/",
        "/web/gradio_api/file=https://elsewhere.example/page.html",  # the server would fetch it for anybody
        "/web/gradio_api/file=%2Fetc%2Fpasswd",
        "/web/gradio_api/file//etc/passwd",
        "/web/gradio_api/proxy=https://example.hf.space/x",
        "/web/static/../../../../etc/passwd",
        "/web/static/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/web/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/web/svelte/..%2f..%2f..%2fapp.py",
        "/web/gradio_api/custom_component/1/client/component/..%2f..%2fx",
        "/web/monitoring/summary",
        "/web/gradio_api/dev/reload",
        "/web/gradio_api/vibe-code/",
        "/web/gradio_api/runs",
        "/web/gradio_api/openapi.json",
        "/web/gradio_api/call/ask",
        "/web/login",
        "/web/docs",
    ],
)
def test_no_route_gives_a_file_of_the_machine_or_more_than_the_page_needs(server: Live, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.http.base_url.port or 0)) as raw:
        # a client would clean the path
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    status = int(answer.split(b" ", 2)[1])
    assert status in (400, 403, 404), answer[:300]
    assert "file=" not in path or b"no such page" in answer
    assert b"root:" not in answer and b"[project]" not in answer and b"def test" not in answer


def test_only_its_own_page_may_use_it(server: Live) -> None:
    port = server.http.base_url.port
    for origin in ("http://evil.example", "http://localhost:1234", "null", f"http://localhost:{port}"):
        for method, path in (
            ("POST", "/web/gradio_api/queue/join"),
            ("GET", "/web/config"),
            ("OPTIONS", "/web/config"),
        ):
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            refused = server.http.request(method, path, headers=headers, json={})
            assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers
    own = server.http.get("/web/config", headers={"Origin": f"http://127.0.0.1:{port}"})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers


def test_the_gate_holds_for_its_routes(server: Live) -> None:
    with live(page=True, allowed_hosts=["localhost"]) as strict:
        assert error_of(strict.http.get("/web/"))["code"] == "host"
    joined = server.http.post("/web/gradio_api/queue/join", content=b"x", headers={"Content-Type": "text/plain"})
    assert error_of(joined)["status"] == 415
    large = {"files": ("x.png", b"0" * 200_000, "image/png")}
    assert error_of(server.http.post("/web/gradio_api/component_server/", files=large))["status"] == 413
    small = {"files": ("x.png", b"0", "image/png")}
    assert error_of(server.http.post("/web/gradio_api/upload", files=small))["status"] == 404  # nothing to fill a disk


def test_open_pages_are_not_counted_as_requests(server: Live) -> None:
    with httpx.Client(base_url=server.url, timeout=5) as client:
        streams = [client.stream("GET", f"/web/gradio_api/heartbeat/page{number}") for number in range(6)]
        for stream in streams:  # more than max_in_flight
            assert stream.__enter__().status_code == 200
        assert server.http.get("/healthz").json()["in_flight"] == 0
        assert server.ask({"role": "user", "content": "Hello"}).status_code == 200
        for stream in streams:
            stream.__exit__(None, None, None)


def test_without_the_key_there_is_a_login_and_nothing_else(locked: Live) -> None:
    for path in ("/", "/web", "/web/"):
        assert locked.http.get(path).headers["location"] == "/login"
    for path in ("/web/config", "/web/gradio_api/info", "/web/gradio_api/heartbeat/x", "/web/theme.css"):
        assert error_of(locked.http.get(path))["code"] == "invalid_api_key"
    assert locked.http.get("/?model=a%20b").headers["location"] == "/login?model=a%20b"
    form = locked.http.get("/login")
    assert form.status_code == 200 and 'type="password"' in form.text and KEY not in form.text
    assert "frame-ancestors 'none'" in form.headers["content-security-policy"]


def test_the_key_opens_the_page_and_stays_out_of_the_cookie(locked: Live) -> None:
    wrong = locked.http.post("/login", data={"key": "<b>wrong"})
    assert wrong.status_code == 401 and "not this server" in wrong.text and "set-cookie" not in wrong.headers
    right = locked.http.post("/login", data={"key": KEY})
    assert right.status_code == 303 and right.headers["location"] == "/web/"
    cookie = right.headers["set-cookie"]
    assert KEY not in cookie and "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/web" in cookie
    assert "Secure" not in cookie  # a browser would not send it back
    encrypted = httpx.post(f"{locked.url}/login", data={"key": KEY}, headers={"X-Forwarded-Proto": "https"})
    assert "; Secure" in encrypted.headers["set-cookie"]
    assert locked.http.get("/web/").status_code == 200  # the client keeps it
    asked = locked.http.post("/login?model=a%20b", data={"key": KEY})
    assert asked.headers["location"] == "/web/?model=a%20b"
    assert error_of(locked.http.get("/v1/models"))["status"] == 401  # it is the page's alone
    assert locked.http.get("/web/config", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_those_without_a_key_can_send_a_login_and_no_more(locked: Live) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert error_of(locked.http.post("/login", content=b"a=1&" * 5000, headers=form))["status"] == 413


@pytest.mark.parametrize("cookie", ["", "9999999999", "9999999999.00", "1.{old}", "x.{new}", "{new}0", "é.1"])
def test_a_forged_or_expired_login_is_none(locked: Live, cookie: str) -> None:
    from sightbridge.serving.api.page_access import _sign

    made = cookie.format(old=_sign("1", KEY).partition(".")[2], new=_sign(str(int(time.time()) + 99), KEY))
    with httpx.Client(base_url=locked.url) as client:
        sent = client.get("/web/config", headers=[(b"Cookie", f"sightbridge={made}".encode())])
        assert sent.status_code == 401, made
        good = f"sightbridge={_sign(str(int(time.time()) + 99), KEY)}"
        assert client.get("/web/config", headers={"Cookie": good}).status_code == 200


def test_a_server_that_ends_takes_no_new_pages_but_finishes_answers() -> None:
    """What the page asks counts as a request, so that a drain waits for it."""
    engine = SteeredEngine(lambda ticket: None)
    with live(served(engine), page=True) as server:
        body = {"data": ["Hello", None, "", "small", "no other model", 0, 1, None, 1, None, "as it is written", ""]}
        join = {**body, "fn_index": _asking(server), "session_hash": "s", "event_data": None, "trigger_id": None}
        assert server.http.post("/web/gradio_api/queue/join", json=join).status_code == 200
        wait_until(lambda: engine.tickets)
        assert server.state.in_flight == 1
        server.state.draining = True
        assert error_of(server.http.get("/web/"))["status"] == 503
        engine.tickets[0].tell(ValueError("over"))
        wait_until(lambda: server.state.in_flight == 0)


def test_no_input_makes_the_server_fetch_anything(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradio import processing_utils

    fetched: list[str] = []
    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", lambda url, **_: fetched.append(url))
    file = {"path": "https://elsewhere.example/large", "meta": {"_type": "gradio.FileData"}}
    for hidden in (file, [file], {"value": file}):
        data = ["Hello", None, hidden, "small", "no other model", 0, 1, None, 1, None, "as it is written", ""]
        join = {"data": data, "fn_index": _asking(server), "session_hash": "s", "event_data": None, "trigger_id": None}
        assert server.http.post("/web/gradio_api/queue/join", json=join).status_code == 200
        told = server.http.get("/web/gradio_api/queue/data?session_hash=s").text
        assert '"success":false' in told and "Traceback" not in told and not fetched


@pytest.mark.parametrize("tail", [b"", b"\r\n--B\r\nnonsense", b"\r\n--B\r\nContent-Disposition: form-data\r\n\r\n"])
def test_a_damaged_upload_leaves_no_file(
    server: Live, tail: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    head = b'--B\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    refused = server.http.post("/web/gradio_api/component_server/", content=head + b"x" * 1000 + tail, headers=kind)
    assert refused.status_code in (400, 500) and "Traceback" not in refused.text
    assert not list(tmp_path.iterdir())


def _asking(server: Live) -> int:
    """The number of the function that answers a question."""
    config = server.http.get("/web/config").json()
    box = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "question")
    return next(d["id"] for d in config["dependencies"] if [box, "submit"] in [list(t) for t in d["targets"]])


def test_the_pages_settings_name_no_path_and_no_key(locked: Live) -> None:
    config = locked.http.get("/web/config", headers={"Authorization": f"Bearer {KEY}"}).json()
    text = json.dumps(config)
    assert KEY not in text and "/work" not in text and "site-packages" not in text
