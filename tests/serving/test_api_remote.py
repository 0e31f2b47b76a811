"""Pictures are fetched from allowed hosts alone, and never from inside the own network."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpcore
import pytest
from api_server import error_of, image, live, png, text, user

from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.remote import Remote, is_public, resolve_name

PUBLIC = "93.184.215.14"


class Host(BaseHTTPRequestHandler):
    """Answers by path: a picture, redirects, nothing, too much, too slow."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.headers["Host"], self.path))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/large":
            for _ in range(100):
                self.wfile.write(b"x" * 1000)
        if self.path == "/slow":
            time.sleep(1)
        self.wfile.write(png(3))

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def host() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    Host.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class World(httpcore.AsyncNetworkBackend):
    """A network in which one public address is really a port of this machine; notes where connections go."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connected: list[str] = []
        self._inner: Any = httpcore.AnyIOBackend()

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        self.connected.append(host)
        return await self._inner.connect_tcp("127.0.0.1", self.port, *args, **options)


def remote(port: int = 0, hosts: Sequence[str] = ("pics.example",), **addresses: list[str]) -> tuple[Remote, World]:
    """One that may ask ``hosts``; names resolve to ``addresses`` (``_`` for ``.``), others as the system says."""
    known = {name.replace("_", "."): found for name, found in {"pics_example": [PUBLIC], **addresses}.items()}

    async def resolve(name: str, port: int) -> Sequence[str]:
        return known[name] if name in known else await resolve_name(name, port)

    world = World(port)
    return Remote(hosts, max_bytes=20_000, seconds=0.5, resolve=resolve, network=world), world


def refused(fetcher: Remote, url: str) -> str:
    with pytest.raises(ApiError) as caught:
        asyncio.run(fetcher.fetch(url))
    assert caught.value.status == 400
    return caught.value.code or ""


def test_an_allowed_host_is_asked_at_the_address_that_was_checked() -> None:
    with host() as port:
        fetcher, world = remote(port)
        assert asyncio.run(fetcher.fetch("http://pics.example/a.png?b=c")) == png(3)
        assert world.connected == [PUBLIC]
        assert Host.asked == [("pics.example", "/a.png?b=c")]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.8",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2002:c0a8:101::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "::7f00:1",
    ],
)
def test_a_name_of_an_inner_address_is_refused(address: str) -> None:
    """Also if it is only one of several."""
    assert not is_public(address)
    fetcher, world = remote(pics_example=[PUBLIC, address])
    assert refused(fetcher, "http://pics.example/") == "remote_address"
    assert world.connected == []


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "0", "localhost"]
)
def test_no_spelling_of_loopback_helps_even_where_it_is_allowed(name: str) -> None:
    fetcher, world = remote(hosts=[name])
    assert refused(fetcher, f"http://{name}/") in ("remote_address", "remote")
    assert world.connected == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://other.example/a.png", "remote_host"),
        ("http://pics.example.evil.example/", "remote_host"),
        ("http://evil.example/pics.example", "remote_host"),
        ("http://evil.example#pics.example", "remote_host"),
        ("http://evil.example?@pics.example", "remote_host"),
        ("http://evil.example\\@pics.example/", "remote_url"),
        ("http://pics.example@evil.example/", "remote_url"),
        ("http://me:secret@pics.example/", "remote_url"),
        ("http://pics.example:22/", "remote_host"),
        ("http://pics.example:443/", "remote_host"),
        ("http://pics.example:99999/", "remote_url"),
        ("http://[::1/", "remote_url"),
        ("http://[::1]/", "remote_host"),
        ("http://169.254.169.254/latest/meta-data", "remote_host"),
        ("http://pics.example\r\nX: y/", "remote_url"),
        ("http://pics.exämple/", "remote_url"),
        ("ftp://pics.example/", "remote_url"),
        ("file:///etc/passwd", "remote_url"),
        ("gopher://pics.example/", "remote_url"),
        ("//pics.example/", "remote_url"),
        ("/etc/passwd", "remote_url"),
        ("", "remote_url"),
    ],
)
def test_urls_that_are_refused_unasked(url: str, code: str) -> None:
    fetcher, world = remote()
    assert refused(fetcher, url) == code
    assert world.connected == []


def test_a_port_of_its_own() -> None:
    with host() as port:
        fetcher, _ = remote(port, hosts=["pics.example:8443"])
        assert asyncio.run(fetcher.fetch("http://pics.example:8443/")) == png(3)
        assert refused(fetcher, "http://pics.example/") == "remote_host"


def test_redirects_are_checked_like_urls() -> None:
    addresses = {"inner_example": ["192.168.0.1"], "more_example": [PUBLIC]}
    with host() as port:
        fetcher, world = remote(port, hosts=["pics.example", "inner.example", "more.example"], **addresses)
        assert asyncio.run(fetcher.fetch("http://pics.example/to/http://more.example/a.png")) == png(3)
        assert asyncio.run(fetcher.fetch("http://pics.example/to//b.png")) == png(3)
        assert refused(fetcher, "http://pics.example/to/http://inner.example/") == "remote_address"
        assert refused(fetcher, "http://pics.example/to/http://127.0.0.1/") == "remote_host"
        assert refused(fetcher, "http://pics.example/to/file:///etc/passwd") == "remote_url"
        assert refused(fetcher, "http://pics.example/to/http://[") == "remote_url"
        assert refused(fetcher, "http://pics.example/to/" * 5 + "a.png") == "remote"
        assert set(world.connected) == {PUBLIC}


def test_a_name_that_changes_its_meaning() -> None:
    """What was checked is what is connected to; every new connection is checked anew."""
    answers = [[PUBLIC], ["127.0.0.1"]]

    async def resolve(name: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    with host() as port:
        world = World(port)
        fetcher = Remote(["pics.example"], max_bytes=20_000, seconds=1, resolve=resolve, network=world)
        assert asyncio.run(fetcher.fetch("http://pics.example/")) == png(3)
        assert refused(fetcher, "http://pics.example/") == "remote_address"
        assert world.connected == [PUBLIC]


def test_too_much_too_slow_and_nothing() -> None:
    with host() as port:
        fetcher, _ = remote(port)
        start = time.monotonic()
        assert refused(fetcher, "http://pics.example/large") == "remote"
        assert refused(fetcher, "http://pics.example/slow") == "remote"
        assert refused(fetcher, "http://pics.example/missing") == "remote"
        assert time.monotonic() - start < 3
    assert refused(fetcher, "http://pics.example/") == "remote"  # nobody is there any more
    nowhere, _ = remote(pics_example=[])
    assert refused(nowhere, "http://pics.example/") == "remote_address"


def test_through_the_server() -> None:
    with live() as server:
        error = error_of(server.ask(user(image("https://pics.example/a.png"))))
        assert error["status"] == 400 and error["code"] == "remote_images_off"
    with host() as port, live(remote=remote(port)[0]) as server:
        assert server.ask(user(image("http://pics.example/a.png"), text("What is it?"))).status_code == 200
        error = error_of(server.ask(user(image("http://other.example/a.png"))))
        assert error["code"] == "remote_host"
        assert error_of(server.ask(user(image("http://pics.example/missing"))))["code"] == "remote"
