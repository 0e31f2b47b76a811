"""``ask`` and ``chat`` about what is marked on a picture: what the model is shown, asked, and what is kept."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from cli_workplace import Workplace, run_command
from PIL import ImageChops

import sightbridge
from sightbridge.cli.chat_commands import Commands
from sightbridge.config.generation import GenerationSettings
from sightbridge.errors import SightbridgeError
from sightbridge.generation.answer import answer
from sightbridge.generation.chat import Chat
from sightbridge.images.load import load_image
from sightbridge.visual_prompts import Mark, Region, draw

BOX = "5,5,25,25"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_model_is_shown_and_asked_what_is_marked(
    workplace: Workplace, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = sightbridge.load(workplace.model)
    mark = Mark(Region((5, 5, 25, 25)), "arrow", (0, 0, 255), "blue", alpha=204, constant=True)
    # what is random about an arrow is the same every time; widths are in pixels that the model sees
    side = processor.image_settings.size
    shown = draw(load_image(workplace.picture), [mark], random.Random(0), anchor=side)
    settings = GenerationSettings(max_new_tokens=6)
    expected = answer(model, processor, shown, "What is pointed to by the blue arrow?", settings)
    looks = ["--shape", "arrow", "--color", "blue", "--alpha", 0.8, "--max-new-tokens", 6, "--json"]
    assert run_command("ask", workplace.model, workplace.picture, "What is <bbox>?", "--bbox", BOX, *looks) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "model": str(workplace.model),
        "images": [str(workplace.picture)],
        "question": "What is pointed to by the blue arrow?",
        "marked": "00000-marked.png",
        "answer": expected,
    }
    assert err == "the marked picture is in 00000-marked.png\n"
    assert not ImageChops.difference(load_image(here / "00000-marked.png"), shown).getbbox()


def test_marked_pictures_lie_beside_one_another_and_never_over_a_file(
    workplace: Workplace, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [workplace.picture, workplace.picture.with_name("00001.png")]
    ask = ["ask", workplace.model, *pictures, "Which?", "--bbox", BOX, "--on", 2, "--max-new-tokens", 2]
    for _ in range(2):
        assert run_command(*ask) == 0
    assert names(here) == ["00001-marked-2.png", "00001-marked.png"]
    assert run_command(*ask, "--save-marked", "mine.jpg") == 0
    (here / "mine.jpg").write_bytes(b"precious")
    capsys.readouterr()
    assert run_command(*ask, "--save-marked", "mine.jpg") == 1
    assert "mine.jpg is there already" in capsys.readouterr().err
    assert (here / "mine.jpg").read_bytes() == b"precious"
    assert run_command(*ask, "--save-marked", "mine.jpg", "--overwrite") == 0
    assert load_image(here / "mine.jpg").size == (48, 48)
    before = pictures[0].read_bytes()
    assert run_command(*ask, "--save-marked", pictures[0], "--overwrite") == 1
    assert pictures[0].read_bytes() == before


def test_several_marks_and_a_question_that_names_none(workplace: Workplace, here: Path, monkeypatch: Any) -> None:
    asked: list[str] = []

    def fake(model: Any, processor: Any, images: Any, question: str, settings: Any) -> str:
        asked.append(question)
        return ""

    monkeypatch.setattr("sightbridge.generation.answer.answer", fake)
    boxes = ["--region", f"bbox={BOX};color=lime", "--region", "polygon=1,1,30,1,30,30;shape=mask-contour"]
    for question in ("Is it <bbox1> or <bbox0>?", "How many?"):
        assert run_command("ask", workplace.model, workplace.picture, question, *boxes, "--json") == 0
    assert asked == ["Is it with the red mask contour or within the lime rectangle?", "How many?"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["What is <bbox>?"], "the question says '<bbox>', but nothing is marked"),
        (["What?", "--shape", "arrow"], "--shape says how to mark, but not where"),
        (["What?", "--bbox", "1,2,3"], "bbox '1,2,3' has 3 numbers"),
        (["What?", "--bbox", "1,2,a,4"], "bbox: 'a' is not a number"),
        (["What?", "--bbox", "900,900,950,950"], "00000.png: the box 900,900,950,950 lies outside of the picture"),
        (["What?", "--bbox", BOX, "--shape", "arow"], "there is no shape 'arow'"),
        (["What?", "--bbox", BOX, "--color", "redd"], "there is no colour 'redd'"),
        (["What?", "--bbox", BOX, "--alpha", "-1"], "alpha: -1"),
        (["What?", "--bbox", BOX, "--width", "0"], "the width 0.0 is not above 0"),
        (["What?", "--bbox", BOX, "--on", "2"], "--on 2: there is 1 picture"),
        (["What is <bbox1>?", "--bbox", BOX], "the only mark is '<bbox0>'"),
        (["What is <bbox>?", "--bbox", BOX, "--bbox", BOX], "there are 2 marks: write '<bbox0>' to '<bbox1>'"),
        (["<image> <image> What?", "--bbox", BOX], "the question says '<image>' 2 times, but the pictures are 1."),
        (["What?", "--save-marked", "x.png"], "--save-marked: nothing is marked"),
        (["What?", "--bbox", BOX, "--save-marked", "x.gif"], "pictures are written as .png"),
    ],
)
def test_wrong_marks_are_told_before_the_model_is_loaded(
    words: list[str],
    message: str,
    workplace: Workplace,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("sightbridge.checkpoints.folder.load_model", load)
    verbs = ["ask"] if "?" in words[0] and "<" in words[0] else ["ask", "chat"]
    for verb in verbs:
        said = words if verb == "ask" else words[1:]
        assert run_command(verb, workplace.model, workplace.picture, *said) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
        assert message in err
    assert names(here) == []


@pytest.fixture
def chat(workplace: Workplace, here: Path) -> Chat:
    model, processor = sightbridge.load(workplace.model)
    short = GenerationSettings(max_new_tokens=3)
    return Chat(model, processor, [workplace.picture, workplace.picture.with_name("00001.png")], settings=short)


def test_marking_in_a_chat(chat: Chat, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands, plain = Commands(chat), load_image(chat.pictures[0].source)
    chat.ask("What is it?")
    commands.run(f":mark 1 bbox={BOX} shape='mask contour'")
    commands.run(":mark 2 bbox=1,1,40,40; shape=arrow; color=aqua")
    out = capsys.readouterr().out
    assert "picture 2 is marked, see 00001-marked.png" in out
    assert "<bbox0> in a question becomes 'with the red mask contour'" in out
    assert "<bbox1> in a question becomes 'pointed to by the aqua arrow'" in out
    assert names(here) == ["00000-marked.png", "00001-marked.png"]
    marked = load_image(chat.pictures[0].source)
    assert ImageChops.difference(marked, plain).getbbox()
    assert not ImageChops.difference(marked, load_image(here / "00000-marked.png")).getbbox()
    chat.ask("Is it <bbox1>?")
    assert chat.exchanges[-1].question == "Is it pointed to by the aqua arrow?"
    commands.run(":img")
    assert "red mask contour" in capsys.readouterr().out.replace("\n", "")
    commands.run(":save chat.json")
    commands.run(":load chat.json")  # the marks are on the pictures
    assert not ImageChops.difference(load_image(chat.pictures[0].source), marked).getbbox()
    commands.run(":img remove 1")
    assert len(chat.pictures) == 1


def test_marks_of_a_chat_are_told_apart(chat: Chat, here: Path) -> None:
    commands = Commands(chat)
    commands.run(f":mark 1 bbox={BOX}")
    commands.run(":mark 1 bbox=1, 1, 40, 40")  # with spaces, as people write
    assert [mark.phrase for mark in chat.marks] == ["within the red rectangle", "within the lime rectangle"]
    assert chat.marks[1].region.box == (1, 1, 40, 40)


def test_a_marked_picture_is_answered_like_one_that_was_marked_before(workplace: Workplace, chat: Chat) -> None:
    mark = Mark(Region((5, 5, 25, 25)), "scribble", constant=True)
    chat.remove_picture(2)
    chat.ask("What?")
    chat.mark(1, [mark])
    said = chat.ask("And <bbox>?")
    side = chat.processor.image_settings.size
    shown = draw(load_image(workplace.picture), [mark], random.Random(0), anchor=side)
    again = Chat(chat.model, chat.processor, [shown], settings=chat.settings)
    again.exchanges, again.waiting = [chat.exchanges[0].__class__("<image>\nWhat?", chat.exchanges[0].answer,
                                                                 tuple(again.waiting))], []  # fmt: skip
    assert again.ask("And with the red scribble?") == said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (":mark", "expected N bbox"),
        (":mark 1", "expected the number of a picture and what to mark"),
        (":mark x bbox=1,2,3,4", "expected the number of a picture"),
        (":mark 7 bbox=1,2,3,4", "there is no picture 7; there are 2"),
        (":mark 1 bbox=1,2,3", "has 3 numbers"),
        (":mark 1 box=1,2,3,4", "expected KEY=VALUE"),
        (":mark 1 shape='arrow", "No closing quotation"),
        (":mark 1 bbox=900,900,950,950", "outside of the picture"),
    ],
)
def test_wrong_marks_in_a_chat_change_nothing(line: str, message: str, chat: Chat, here: Path) -> None:
    before = list(chat.pictures)
    with pytest.raises(SightbridgeError, match=message):
        Commands(chat).run(line)
    assert chat.pictures == before and not chat.marks and names(here) == []


def test_a_pipe_gets_answers_alone(
    workplace: Workplace, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What is <bbox>?\n"))
    options = ["--bbox", BOX, "--save-marked", "shown.png", "--max-new-tokens", 3]
    assert run_command("chat", workplace.model, workplace.picture, *options) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "<bbox> in a question becomes 'within the red rectangle'" in err
    assert names(here) == ["shown.png"]
