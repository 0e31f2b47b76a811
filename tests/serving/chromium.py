"""A page of a server of ours in Chromium, which may ask no other host for anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("gradio")
    if BROWSER is None:
        pytest.skip("no Chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Any, url: str, **context: Any) -> Iterator[Any]:
    """A page; at its end, nothing else was asked for and no script failed."""
    asked: list[str] = []
    failed: list[str] = []
    opened = browser.new_context(**context)
    page = opened.new_page()
    page.set_default_timeout(10_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.route(lambda there: not there.startswith((url, "data:", "blob:")), lambda route: route.abort())
    page.goto(url)
    yield page
    opened.close()
    assert not failed
    assert all(there.startswith((url, "data:", "blob:")) for there in asked)
