"""Conversations of the page without a page: what is asked, remembered, shown and voted on."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_server import SteeredEngine, png, served
from PIL import Image

from sightbridge.cli.serve import _check_votes
from sightbridge.config.serving import ServingSettings
from sightbridge.errors import SettingsError
from sightbridge.images.load import load_image
from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.app import make_app, make_state
from sightbridge.serving.api.files import StoredFile
from sightbridge.serving.api.state import State
from sightbridge.serving.engines.engine import QueueFull
from sightbridge.serving.engines.request import Finished, Piece, Request
from sightbridge.serving.engines.ticket import Ticket
from sightbridge.serving.web.asking import write_answers
from sightbridge.serving.web.examples import examples
from sightbridge.serving.web.talk import Answer, AskedPicture, Talk
from sightbridge.serving.web.thumbnails import thumbnail
from sightbridge.serving.web.votes import Votes, check_file

RED = {"bbox": [2, 2, 10, 10], "color": "red"}


@dataclass
class Picture:
    """A picture of the page's box."""

    file: str
    data: bytes
    regions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def part(self) -> dict[str, Any]:
        return {"type": "file", "file": {"file_id": self.file}, "regions": self.regions}


def state_of(*engines: SteeredEngine, **settings: Any) -> State:
    models = [served(engine, name=f"model-{number}") for number, engine in enumerate(engines)]
    return make_state(models, ServingSettings(**settings))


def upload(state: State, seed: int, *regions: dict[str, Any]) -> Picture:
    kept = state.files.add(StoredFile(png(seed), "x.png", "vision"))
    return Picture(kept.id, kept.data, list(regions))


def ask(talk: Talk, question: str, *pictures: Picture) -> bool:
    return talk.ask(question, [AskedPicture.of(picture, 336) for picture in pictures])


def answer(talk: Talk, state: State, system: str = "", **settings: Any) -> int:
    """Let all models answer; returns how often the page was told."""

    async def run() -> int:
        names = list(state.models.by_name)
        return len([None async for _ in write_answers(talk, names, settings, system, state)])

    return asyncio.run(run())


def says(*pieces: str, reason: Any = "stop") -> Any:
    def then(ticket: Ticket) -> None:
        for number, piece in enumerate(pieces):
            ticket.tell(Piece(piece, (number,)))
        ticket.tell(Finished(reason, 7, len(pieces), 0.5, 0.2, 0.3))

    return then


def test_a_talk_goes_through_the_checks_of_the_api_to_the_engine() -> None:
    engine = SteeredEngine(says("a ", "bus"))
    state = state_of(engine)
    picture, talk = upload(state, 1, RED), Talk()
    assert not ask(talk, "What is <bbox>?", picture)
    answer(talk, state, temperature=0.5, seed=3, max_tokens=9)
    request = engine.tickets[0].request
    assert request.images == (picture.data,) and len(request.marks) == 1
    assert request.turns[0].text == "<image>\nWhat is within the red rectangle?"
    assert (request.settings.temperature, request.settings.seed, request.settings.max_new_tokens) == (0.5, 3, 9)
    assert talk.exchanges[0].answers[0].text == "a bus" and not talk.is_busy
    assert talk.exchanges[0].answers[0].timing == "0.5 s · waited 0.2 s · first token 0.30 s · 2 tokens"
    assert state.in_flight == 0
    assert "· 45 tokens/s · 10 tokens" in Answer("m", "x", Finished("stop", 7, 10, 0.5, 0.2, 0.3)).timing


def test_a_picture_comes_with_the_question_it_was_new_for_and_marks_may_change() -> None:
    engine = SteeredEngine(says("yes"))
    state = state_of(engine)
    one, two, talk = upload(state, 1, RED), upload(state, 2), Talk()
    ask(talk, "What is <bbox>?", one)
    answer(talk, state)
    one.regions = []  # was rubbed out: the words of before stay what they were
    assert not ask(talk, "And this?", one, two)
    answer(talk, state)
    assert [turn.text for turn in engine.tickets[1].request.turns] == [
        "<image>\nWhat is within the red rectangle?",
        "yes",
        "<image>\nAnd this?",
        None,
    ]
    assert engine.tickets[1].request.images == (one.data, two.data) and not engine.tickets[1].request.marks
    assert ask(talk, "Alone?", two), "a picture is gone, so a new conversation begins"
    assert [exchange.question for exchange in talk.exchanges] == ["Alone?"]


def test_two_models_answer_at_once_and_each_goes_on_with_its_own_answers() -> None:
    left, right = SteeredEngine(says("left")), SteeredEngine(says("right"))
    state, talk = state_of(left, right), Talk()
    for question in ("One?", "Two?"):
        ask(talk, question)
        answer(talk, state)
    assert [turn.text for turn in left.tickets[1].request.turns] == ["One?", "left", "Two?", None]
    assert [turn.text for turn in right.tickets[1].request.turns] == ["One?", "right", "Two?", None]


def test_a_side_that_failed_is_asked_again_with_its_pictures() -> None:
    def refuse(request: Request) -> Ticket:
        raise QueueFull("64 requests wait already; try again in 3 s.", 3)

    left, right = SteeredEngine(says("left")), SteeredEngine(says("right"))
    submit = right.submit
    right.submit = refuse  # type: ignore[method-assign]
    state, talk = state_of(left, right), Talk()
    picture = upload(state, 1)
    ask(talk, "One?", picture)
    answer(talk, state)
    assert talk.exchanges[0].answers[1].error == "64 requests wait already; try again in 3 s."
    assert not talk.exchanges[0].has_failed
    right.submit = submit  # type: ignore[method-assign]
    ask(talk, "Two?", picture)
    answer(talk, state)
    assert [turn.text for turn in right.tickets[0].request.turns] == ["<image>\nTwo?", None]
    assert len(left.tickets[1].request.turns) == 4


@pytest.mark.parametrize(
    ("question", "settings", "bounds", "said"),
    [
        ("x" * 50, {}, {"max_characters": 40}, "50 characters; at most 40"),
        ("x", {"max_tokens": 99}, {"max_tokens": 50}, "99 tokens"),
        ("x", {"num_beams": 3, "temperature": 0.5}, {}, "choose one"),
        ("x", {"num_beams": 99}, {}, "99 beams"),
        ("x", {"temperature": "hot"}, {}, "temperature"),
        ("What is <bbox>?", {}, {}, "'<bbox>'"),
    ],
)
def test_what_the_api_refuses_is_told_and_forgotten(question: str, settings: Any, bounds: Any, said: str) -> None:
    engine = SteeredEngine()
    state, talk = state_of(engine, **bounds), Talk()
    ask(talk, question)
    answer(talk, state, **settings)
    assert said in talk.exchanges[0].answers[0].error and talk.exchanges[0].has_failed and not engine.tickets
    ask(talk, "Better?")
    answer(talk, state)
    assert [exchange.question for exchange in talk.exchanges] == ["Better?"]
    assert talk.exchanges[0].answers[0].text == "Yes."


def test_marks_on_small_copies_are_as_wide_as_models_see_them() -> None:
    file = io.BytesIO()
    Image.new("RGB", (160, 160), "white").save(file, "PNG")
    covered = []
    for seen in (336, 48):
        small = thumbnail(file.getvalue(), [{"bbox": [20, 20, 140, 140], "color": "red"}], seen)
        pixels = np.asarray(load_image(base64.b64decode(small.split(",")[1])))
        covered.append((pixels[..., 1] < 200).mean())
    assert covered[1] > 3 * covered[0] > 0


def test_a_failure_of_ours_shows_a_number_and_nothing_else() -> None:
    def fail(ticket: Ticket) -> None:
        ticket.tell(ZeroDivisionError("secret"))

    state, talk = state_of(SteeredEngine(fail)), Talk()
    ask(talk, "x")
    answer(talk, state)
    told = talk.exchanges[0].answers[0].error
    assert "Something failed here" in told and "secret" not in told


def test_stop_keeps_what_is_written_and_frees_the_engine() -> None:
    engine = SteeredEngine(lambda ticket: ticket.tell(Piece("so far", (1,))))
    state, talk = state_of(engine), Talk()
    ask(talk, "x")

    async def run() -> None:
        async for _ in write_answers(talk, ["model-0"], {}, "", state):
            if talk.exchanges[0].answers[0].text and not talk.is_stopped:
                assert state.in_flight == 1
                with pytest.raises(ApiError, match="being written"):
                    await anext(write_answers(talk, ["model-0"], {}, "", state))
                talk.stop()
                assert engine.tickets[0].is_cancelled
                engine.tickets[0].tell(Finished("cancelled", 7, 1, 0.5))

    asyncio.run(run())
    done = talk.exchanges[0].answers[0]
    assert done.text == "so far" and not done.error and done.timing.endswith("stopped")
    assert talk.take_back() == "x" and not talk.exchanges


def test_whoever_leaves_ends_the_answer() -> None:
    engine = SteeredEngine(lambda ticket: None)
    state, talk = state_of(engine), Talk()
    ask(talk, "x")

    async def run() -> None:
        answers = write_answers(talk, ["model-0"], {}, "", state)
        await anext(answers)
        while not engine.tickets:
            await asyncio.sleep(0.01)
        await answers.aclose()

    asyncio.run(run())
    assert engine.tickets[0].is_cancelled and state.in_flight == 0 and not talk.is_busy


def test_a_server_that_ends_or_is_full_takes_no_question() -> None:
    state, talk = state_of(SteeredEngine(), max_in_flight=1), Talk()
    ask(talk, "x")
    with state.handling(), pytest.raises(ApiError, match="being handled already"):
        answer(talk, state)
    state.draining = True
    with pytest.raises(ApiError, match="about to end"):
        answer(talk, state)


def test_a_vote_is_a_line_without_pictures(tmp_path: Path) -> None:
    state, file = state_of(SteeredEngine(says("left")), SteeredEngine(says("right"))), tmp_path / "votes.jsonl"
    picture, talk = upload(state, 1, RED), Talk()
    ask(talk, "What is <bbox>?", picture)
    answer(talk, state, temperature=0.0)
    votes = Votes(file)
    votes.add("upvote", talk, 0, [1], "127.0.0.1")
    votes.add("leftvote", talk, 0, [0, 1], None)
    one, both = map(json.loads, file.read_text().splitlines())
    assert (one["type"], one["models"], one["client"]) == ("upvote", ["model-1"], "127.0.0.1")
    assert both["type"] == "leftvote" and both["models"] == ["model-0", "model-1"]
    assert [side[0]["answer"] for side in both["conversation"]] == ["left", "right"]
    said = one["conversation"][0][0]
    assert said["question"] == "What is within the red rectangle?" and said["timing"]["first_token"] == 0.3
    assert said["pictures"][0]["regions"] == [RED] and len(said["pictures"][0]["sha256"]) == 64
    assert "base64" not in file.read_text() and one["settings"] == {"temperature": 0.0}
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(ApiError, match="20 votes"):
        for _ in range(19):
            votes.add("upvote", talk, 0, [1], None)
    assert len(file.read_text().splitlines()) == 20
    with pytest.raises(SettingsError, match="--votes"):
        check_file(tmp_path / "missing" / "votes.jsonl")
    with pytest.raises(SettingsError, match="is for the web page"):
        _check_votes(file, shows_page=False)


def test_one_models_answer_stands_for_the_other_side_of_earlier_questions() -> None:
    talk = Talk()
    talk.ask("One?", [])
    talk.exchanges[0].answers = [Answer("a", "first")]
    talk.ask("Two?", [])
    assert [message["content"] for message in talk.messages(1)][1] == "first"


def test_examples_have_a_question_and_an_answer_in_every_language() -> None:
    for example in examples():
        assert example.data.startswith(b"\x89PNG") and example.thumbnail.startswith("data:image/jpeg")
        assert set(example.asked) == {"English", "German", "Spanish", "Chinese"}
        assert all(question and reply for question, reply in example.asked.values())


def test_controls_become_fields_of_the_request_that_ask_for_nothing_by_default() -> None:
    pytest.importorskip("gradio")
    from sightbridge.serving.web.controls import AS_WRITTEN, read_controls

    assert read_controls([0, 1, 0, 1, -1, AS_WRITTEN, ""], "Hm?") == ({}, "", "Hm?")
    assert read_controls([None, None, None, None, None, AS_WRITTEN, None], "Hm?") == ({}, "", "Hm?")
    fields, system, words = read_controls([0.7, 0.9, 20, 1, 5, "Swahili", "Be brief."], "Hm?")
    assert fields == {"temperature": 0.7, "top_p": 0.9, "max_tokens": 20, "seed": 5}
    assert (system, words) == ("Be brief.", "Question: Hm? Short answer in Swahili:")
    assert read_controls([0, 1, None, 4, None, "Thai", None], " ")[::2] == ({"num_beams": 4}, "Caption in Thai: ")


def test_messages_that_are_shown_lead_back_to_their_questions() -> None:
    pytest.importorskip("gradio")
    from sightbridge.serving.web.transcript import answer_at, as_shown, as_typed, exchange_at, transcript

    state, talk = state_of(SteeredEngine(says("<b>yes</b>"))), Talk()
    ask(talk, "One <image>?", upload(state, 1))
    answer(talk, state)
    ask(talk, "Two?")  # without the picture: anew
    answer(talk, state)
    ask(talk, "Three?")
    answer(talk, state)
    shown = transcript(talk, 0)
    assert [message["role"] for message in shown] == ["user", "assistant", "assistant"] * 2
    assert not re.search(r"<\w|</", shown[1]["content"]), "an answer is text, no markup"
    assert as_typed(shown[1]["content"]) == "<b>yes</b>"
    assert as_shown("1 < 2 & 3") == "1 < 2 & 3"
    assert exchange_at(talk, 0, 3) == 1 and exchange_at(talk, 0, [3, 0]) == 1 and exchange_at(talk, 0, 99) == -1
    assert answer_at(talk, 0, 4) == 1 and answer_at(talk, 0, "x") == 1 and answer_at(talk, 1, 4) is None


def test_the_page_is_one_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio would build four, each of which takes as long as all of ours."""
    pytest.importorskip("gradio")
    from gradio.routes import App

    built, create = [], App.create_app
    monkeypatch.setattr(App, "create_app", lambda *args, **options: built.append(args) or create(*args, **options))
    state = state_of(SteeredEngine())
    state.shows_page = True
    make_app(state)
    assert len(built) == 1
