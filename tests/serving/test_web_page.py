"""The page in a browser: what a user does with the chat, on engines that the tests steer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from api_server import Live, SteeredEngine, answer_yes, live, png, wait_until
from chromium import page_of

from sightbridge.serving.engines.request import Finished, Piece
from sightbridge.serving.engines.ticket import Ticket

QUESTION, SEND = "#question textarea", "#question button"
SECOND = 1000


def ask(page: Any, words: str) -> None:
    page.fill(QUESTION, words)
    page.press(QUESTION, "Enter")


def wait_for(page: Any, text: str, chat: int = 0) -> None:
    """Wait until a chat shows this line, without the invisible characters that keep markup from being read."""
    shown = "[...document.querySelectorAll('#chat-%d .message')].map(x => x.innerText.replaceAll('\u2060', '').trim())"
    page.wait_for_function(f"text => ({shown % chat}).includes(text)", arg=text, timeout=20 * SECOND)


def wait_until_idle(page: Any) -> None:
    page.wait_for_selector("#question .submit-button", timeout=20 * SECOND)


def says(*pieces: str, finished: bool = False) -> Any:
    def then(ticket: Ticket) -> None:
        for number, piece in enumerate(pieces):
            ticket.tell(Piece(piece, (number,)))
        if finished:
            end(ticket)

    return then


def end(ticket: Ticket, reason: Any = "stop") -> None:
    ticket.tell(Finished(reason, 7, 2, 1.5, 0.0, 0.5))


def test_a_picture_is_uploaded_asked_about_and_the_answer_streams(
    page: Any, engines: list[SteeredEngine], web: Live
) -> None:
    data = png(3, 64, 48)
    page.set_input_files("#pictures input[type=file]", {"name": "a.png", "mimeType": "image/png", "buffer": data})
    page.wait_for_selector("#pictures .thumbnail")
    engines[0].then = says("A large ", "yellow")
    ask(page, "What is <here>?")
    wait_for(page, "A large yellow")
    ticket = engines[0].tickets[0]
    assert page.locator("#chat-0 .timing").count() == 0 and page.locator("#question .stop-button").is_visible()
    ticket.tell(Piece(" bus & <b>more</b>", (3,)))
    wait_for(page, "A large yellow bus & <b>more</b>")
    end(ticket)
    wait_for(page, "1.5 s · first token 0.50 s · 2 tokens")
    wait_until_idle(page)
    assert ticket.request.images == (data,) and ticket.request.turns[0].text == "<image>\nWhat is <here>?"
    assert page.locator("#chat-0 .shown img").count() == 1
    assert web.state.in_flight == 0


def test_stop_ends_the_answer_and_keeps_what_is_written(page: Any, engines: list[SteeredEngine]) -> None:
    engines[0].then = says("So far")
    ask(page, "A long story?")
    wait_for(page, "So far")
    page.click("#question .stop-button")
    wait_until(lambda: engines[0].tickets[0].is_cancelled)
    end(engines[0].tickets[0], "cancelled")
    page.locator("#chat-0 .timing", has_text="stopped").wait_for()
    wait_until_idle(page)
    engines[0].then = answer_yes
    ask(page, "And now?")
    wait_for(page, "Yes.")
    assert [turn.text for turn in engines[0].tickets[1].request.turns[-4:-1]] == [
        engines[0].tickets[0].request.turns[0].text,
        "So far",
        "And now?",
    ]


def test_regenerate_edit_and_undo(page: Any, engines: list[SteeredEngine]) -> None:
    ask(page, "First?")
    wait_for(page, "Yes.")
    wait_until_idle(page)
    engines[0].then = says("No.", finished=True)
    page.click("#again")
    wait_for(page, "No.")
    wait_until_idle(page)
    assert len(engines[0].tickets) == 2 and len(engines[0].tickets[1].request.turns) == 2
    ask(page, "Second?")
    page.wait_for_function("document.querySelectorAll('#chat-0 .timing').length == 2")
    wait_until_idle(page)
    page.locator("#chat-0 button[aria-label=Edit]").first.click()
    page.locator("#chat-0 .message textarea").fill("First, in other words?")
    page.locator("#chat-0 button[aria-label=Submit]").click()
    page.wait_for_function("document.querySelectorAll('#chat-0 .timing').length == 1")
    wait_until_idle(page)
    wait_for(page, "First, in other words?")
    assert [turn.text for turn in engines[0].tickets[-1].request.turns][1:] == [None]
    page.click("#undo")
    page.wait_for_function("!document.querySelector('#chat-0 .message')")
    assert page.input_value(QUESTION) == "First, in other words?"


def test_two_models_side_by_side_and_votes(page: Any, engines: list[SteeredEngine], votes: Path) -> None:
    page.click("#models input >> nth=1")
    page.get_by_role("option", name="second").click()
    page.wait_for_selector("#chat-1")
    engines[1].then = says("Perhaps")
    ask(page, "Is it?")
    wait_for(page, "Yes.")
    wait_for(page, "Perhaps", chat=1)
    assert not page.locator("#votes").is_visible()
    end(engines[1].tickets[0])
    page.get_by_text("Left is better").click()
    wait_until(votes.exists)
    wait_until(lambda: votes.read_text().endswith("\n"))
    page.locator("#chat-1 button[aria-label=Like]").first.click()
    wait_until(lambda: votes.read_text().count("\n") == 2)
    compared, liked = map(json.loads, votes.read_text().splitlines())
    assert compared["type"] == "leftvote" and compared["models"] == ["first", "second"]
    assert liked["type"] == "upvote" and liked["models"] == ["second"]
    assert liked["conversation"][0][-1]["answer"] == "Perhaps"
    page.click("#models input >> nth=1")
    page.get_by_role("option", name="no other model").click()
    page.wait_for_selector("#chat-1", state="hidden")


def test_errors_are_the_apis_and_the_question_comes_back(page: Any, engines: list[SteeredEngine]) -> None:
    ask(page, "What is <bbox>?")
    page.locator("#chat-0 .failed", has_text="but nothing is marked on a picture").wait_for()
    wait_until_idle(page)
    assert page.input_value(QUESTION) == "What is <bbox>?" and not engines[0].tickets
    ask(page, "What is it?")
    wait_for(page, "Yes.")
    assert page.locator("#chat-0 .failed").count() == 0


def test_an_example_fills_in_picture_and_question(page: Any, engines: list[SteeredEngine]) -> None:
    page.locator("#examples button").nth(1).click()
    page.wait_for_function("document.querySelector('#question textarea').value == 'What is the green shape?'")
    page.click(SEND)
    wait_for(page, "Yes.")
    assert len(engines[0].tickets[0].request.images) == 1


def test_the_address_names_a_model_and_closing_the_page_ends_its_answer(
    chromium: Any, web: Live, engines: list[SteeredEngine]
) -> None:
    with page_of(chromium, f"{web.url}/?model=second", viewport={"width": 420, "height": 800}) as page:
        page.wait_for_function("document.querySelector('#models input')?.value == 'second'")
        assert page.evaluate("document.documentElement.scrollWidth") <= 420
        engines[1].tickets.clear()
        engines[1].then = says("Well")
        ask(page, "Is it?")
        wait_for(page, "Well")
    wait_until(lambda: engines[1].tickets[0].is_cancelled)
    end(engines[1].tickets[0], "cancelled")
    wait_until(lambda: web.state.in_flight == 0)


def test_copies_have_no_invisible_characters(page: Any) -> None:
    ask(page, "Is it <b>bold</b>?")
    wait_for(page, "Yes.")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#chat-0 .message").first.evaluate("message => getSelection().selectAllChildren(message)")
    page.keyboard.press("Control+c")
    assert page.evaluate("navigator.clipboard.readText()").strip() == "Is it <b>bold</b>?"
    page.evaluate("navigator.clipboard.writeText('')")
    page.locator("#chat-0 button[aria-label='Copy message']").first.click()
    page.wait_for_function("async () => await navigator.clipboard.readText() === 'Is it <b>bold</b>?'")


def test_lists_of_choices_by_keyboard(page: Any) -> None:
    choice, other = page.locator("#models input").nth(0), page.locator("#models input").nth(1)
    choice.focus()
    page.wait_for_selector("#models [role=option]")
    page.keyboard.press("Tab")
    assert other.evaluate("field => field === document.activeElement")
    page.keyboard.type("sec")  # in place of what is chosen
    shown = "[...document.querySelectorAll('#models [role=option]')].map(option => option.getAttribute('aria-label'))"
    page.wait_for_function(f"String({shown}) === 'second'")
    page.keyboard.press("Tab")
    page.wait_for_selector("#models [role=option]", state="detached")


def test_with_a_key_the_page_asks_for_it_first(chromium: Any) -> None:
    with live(page=True, api_key="secret-key") as locked, page_of(chromium, locked.url) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        assert re.fullmatch(r".*/login", page.url)
        page.fill("#key", "guess")
        page.click("button")
        page.get_by_text("That is not this server's key.").wait_for()
        page.fill("#key", "secret-key")
        page.click("button")
        page.wait_for_selector(QUESTION)
        ask(page, "Is it?")
        wait_for(page, "Yes.")
        assert not any("secret" in url for url in asked)
