"""Models of other rooms' tests serve here too; and one page, for all tests that look at it in a browser."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "models"), str(TESTS / "scoring")]

from api_server import Live, SteeredEngine, answer_yes, live, served  # noqa: E402
from chromium import Browser, page_of  # noqa: E402


@pytest.fixture(scope="session")
def engines() -> list[SteeredEngine]:
    """What answers on the page: one for each of its two models."""
    return [SteeredEngine(), SteeredEngine()]


@pytest.fixture(scope="session")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's votes go."""
    return tmp_path_factory.mktemp("votes") / "votes.jsonl"


@pytest.fixture(scope="session")
def web(engines: list[SteeredEngine], votes: Path) -> Iterator[Live]:
    """A server with a page."""
    pytest.importorskip("gradio")
    models = [served(engine, name=name) for engine, name in zip(engines, ("first", "second"), strict=True)]
    with live(*models, page=True, votes=votes, max_regions=4) as running:
        yield running


@pytest.fixture(scope="session")
def started() -> Iterator[Browser]:
    """The browser."""
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def chromium(started: Browser) -> Iterator[Any]:
    """The browser, while a test uses it."""
    with started.used() as found:
        yield found


@pytest.fixture(scope="session")
def opened(started: Browser, web: Live) -> Iterator[Any]:
    """The page, opened once: that takes longer than a test."""
    with started.used() as found:
        kept = page_of(found, web.url, viewport={"width": 1280, "height": 900}, has_touch=True)
        page = kept.__enter__()
        page.wait_for_selector("#pictures .empty")
    yield page
    with started.used():
        kept.__exit__(None, None, None)


@pytest.fixture
def page(opened: Any, chromium: Any, engines: list[SteeredEngine]) -> Iterator[Any]:
    """The page with an empty conversation about nothing."""
    for engine in engines:
        engine.then = answer_yes
        engine.tickets.clear()
    opened.click("#clear")
    opened.wait_for_function("!document.querySelector('#chat-0 .message')")
    while opened.locator("#pictures .thumbnail").count():
        opened.locator("#pictures .thumbnail .remove").first.click()
    opened.fill("#question textarea", "")
    yield opened
