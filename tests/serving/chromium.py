"""Pages of servers of ours in Chromium, which may ask no other host for anything."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


class Browser:
    """Chromium for all tests of a session that want it. Others may run their own event loops beside it.

    Playwright leaves its event loop "running" in the thread between two calls, so that ``asyncio.run`` would refuse to.
    """

    def __init__(self) -> None:
        api = pytest.importorskip("playwright.sync_api")
        if PROGRAM is None:
            pytest.skip("no Chromium")
        self._driver = api.sync_playwright().start()
        self._loop = asyncio.get_running_loop()
        self._chromium = self._driver.chromium.launch(executable_path=PROGRAM, args=ARGUMENTS)
        asyncio._set_running_loop(None)

    @contextmanager
    def used(self) -> Iterator[Any]:
        """Within, playwright's functions can be called."""
        asyncio._set_running_loop(self._loop)
        try:
            yield self._chromium
        finally:
            asyncio._set_running_loop(None)

    def close(self) -> None:
        """End it."""
        with self.used():
            self._chromium.close()
            self._driver.stop()


@contextmanager
def page_of(chromium: Any, url: str, **context: Any) -> Iterator[Any]:
    """A page; at its end, nothing else was asked for and no script failed."""
    asked: list[str] = []
    failed: list[str] = []
    opened = chromium.new_context(**context)
    page = opened.new_page()
    page.set_default_timeout(20_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(url)
    yield page
    opened.close()
    assert not failed
    origin = "/".join(url.split("/")[:3])
    assert all(there.startswith((origin, "data:", "blob:")) for there in asked)
