"""Beam search and other ways to answer beyond OpenAI's fields, and streams in which long nothing is said."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from api_server import Live, SteeredEngine, answer_yes, error_of, image, live, png, served, text, user
from engine_requests import model_of, processor_of

from sightbridge.config.generation import GenerationSettings
from sightbridge.generation.answer import answer
from sightbridge.serving.api import chat_api
from sightbridge.serving.engines.ticket import Ticket

QUESTION = user(image(3), text("What is it?"))


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(served(), served(family="t5", name="t5"), max_beams=4) as running:
        yield running


def expected(family: str = "llama", **settings: object) -> str:
    chosen = GenerationSettings(**{"max_new_tokens": 12, **settings})  # type: ignore[arg-type]
    return answer(model_of(family), processor_of(family), [png(3)], "What is it?", chosen)


def said(server: Live, model: str = "small", **fields: object) -> str:
    response = server.ask(QUESTION, model=model, max_tokens=12, **fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(("model", "family"), [("small", "llama"), ("t5", "t5")])
def test_a_beam_search_is_that_of_ask(server: Live, model: str, family: str) -> None:
    greedy = said(server, model)
    searched = said(server, model, num_beams=4)
    assert searched == expected(family, num_beams=4) != greedy
    long = said(server, model, num_beams=4, length_penalty=-5)
    assert long == expected(family, num_beams=4, length_penalty=-5.0)


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"repetition_penalty": 5}, {"repetition_penalty": 5.0}),
        ({"min_tokens": 9}, {"min_new_tokens": 9}),
        (
            {"temperature": 2.0, "top_k": 3, "seed": 4},
            {"sample": True, "temperature": 2.0, "top_k": 3, "seed": 4},
        ),
    ],
)
def test_other_settings_are_those_of_ask(server: Live, fields: dict, settings: dict) -> None:
    assert said(server, **fields) == expected(**settings)


def test_a_beam_search_streams_its_answer_at_the_end(server: Live) -> None:
    chunks = list(server.chat(QUESTION, max_tokens=12, stream=True, extra_body={"num_beams": 3}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert pieces == [expected(num_beams=3)]
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_beams": 5}, "at most 4"),
        ({"num_beams": 0}, "greater than"),
        ({"num_beams": 2, "temperature": 1}, "choose one"),
        ({"num_beams": 2, "n": 2}, "leave out n"),
        ({"num_beams": 2, "logprobs": True}, "not told of a beam search"),
        ({"length_penalty": 2}, "num_beams above 1"),
        ({"top_k": 5}, "temperature above 0"),
        ({"min_tokens": 9, "max_tokens": 3}, "above max_tokens"),
        ({"min_tokens": 600}, "at most"),
        ({"repetition_penalty": 0}, "greater than"),
    ],
)
def test_what_does_not_go_together(server: Live, fields: dict, says: str) -> None:
    error = error_of(server.ask(user("Hello"), model="small", **fields))
    assert error["status"] == 422 and says in error["message"], error


def test_a_prompt_that_is_too_long_is_told_in_the_apis_words(server: Live) -> None:
    error = error_of(server.ask(user("word " * 3000), model="small"))
    assert "lower max_tokens" in error["message"] and "max_new_tokens" not in error["message"]


def test_a_stream_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment while nothing comes, which a client leaves out."""
    monkeypatch.setattr(chat_api, "KEEP_ALIVE", 0.05)

    def late(ticket: Ticket) -> None:
        threading.Timer(0.3, answer_yes, [ticket]).start()

    with live(served(SteeredEngine(late))) as server:
        raw = server.ask(user("Hello"), stream=True).text
        assert 2 <= raw.count(": still waiting\n\n") <= 7 and raw.endswith("data: [DONE]\n\n")
        chunks = server.chat(user("Hello"), stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Yes."
    with live(served(SteeredEngine(lambda ticket: None)), request_seconds=0.2) as server:
        raw = server.ask(user("Hello"), stream=True).text
        assert ": still waiting" in raw and "No answer within 0.2 s" in raw
