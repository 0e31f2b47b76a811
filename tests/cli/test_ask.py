"""``sightbridge ask``: answers in the terminal and as JSON; every mistake is one line."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from cli_workplace import Workplace, run_command

import sightbridge
from sightbridge.config.generation import GenerationSettings
from sightbridge.generation.answer import answer

QUESTION = "What is in the picture?"


def test_the_answer_is_the_models(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = sightbridge.load(workplace.model)
    for beams in (1, 2):
        settings = GenerationSettings(max_new_tokens=6, num_beams=beams)
        expected = answer(model, processor, workplace.picture, QUESTION, settings)
        options = ["--max-new-tokens", 6, "--beams", beams]
        assert run_command("ask", workplace.model, workplace.picture, QUESTION, *options) == 0
        assert capsys.readouterr() == (f"{expected}\n", "")


def test_json_several_pictures_and_sampling(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [workplace.picture, workplace.picture.with_name("00001.png")]
    options = ["--json", "--max-new-tokens", 4, "--temperature", 2, "--top-p", 0.9, "--seed", 1]
    said = []
    for _ in range(2):
        assert run_command("ask", workplace.model, *pictures, QUESTION, *options) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
    assert said[0]["images"] == [str(path) for path in pictures]
    assert said[0]["question"] == QUESTION
    assert isinstance(said[0]["answer"], str)


def test_system_text_reaches_the_prompt(
    workplace: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    systems = []

    def fake(model, processor, images, question, settings) -> str:
        systems.append(processor.prompt_settings.system)
        return "yes"

    monkeypatch.setattr("sightbridge.generation.answer.answer", fake)
    command = ["ask", workplace.model, workplace.picture, QUESTION, "--json"]
    assert run_command(*command) == 0
    assert run_command(*command, "--system", "Answer in German.") == 0
    assert systems == ["", "Answer in German."]


def huge_png(picture: Path, side: int) -> bytes:
    """The picture with a header that says it has ``side`` x ``side`` pixels."""
    data = picture.read_bytes()
    header = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_bad_pictures(workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = workplace.picture
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:150])
    (tmp_path / "huge.png").write_bytes(huge_png(good, 30_000))
    (tmp_path / "large.png").write_bytes(huge_png(good, 11_000))  # Pillow would warn, and open it
    expected = {
        "missing.png": "no such picture file",
        "text.png": "not a picture in a supported format",
        "cut.png": "truncated or damaged",
        "huge.png": "limit",
        "large.png": "limit",
    }
    for name, message in expected.items():
        assert run_command("ask", workplace.model, good, tmp_path / name, QUESTION) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        assert name in err and message in err


def test_bad_models(workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = shutil.copytree(workplace.model, tmp_path / "damaged")
    weights = damaged / "connector.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    no_json = shutil.copytree(workplace.model, tmp_path / "no_json")
    (no_json / "sightbridge.json").write_text("{")
    expected = {
        tmp_path / "missing": "no such model folder",
        workplace.run: f"Did you mean {workplace.model}?",
        workplace.scenes: "it is not a model folder",
        damaged: "connector.safetensors: the file is damaged",
        no_json: "the manifest is damaged",
    }
    for folder, message in expected.items():
        assert run_command("ask", folder, workplace.picture, QUESTION) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{picture}", "{picture}"], "the last word is the question"),
        (["{picture}", "<image><image> Which?"], "says '<image>' 2 times, but the pictures are 1"),
        (["{picture}", "What?", "--beams", "2", "--sample"], "error: option: choose one: 'sample' draws tokens"),
        (["{picture}", "What?", "--sample", "--seed", str(2**64)], "seed: expected a number below"),
        (["{picture}", "What?", "--top-p", "1.5"], "top_p: expected a number of at most 1"),
        (["{picture}", "What?", "--source", "vision_tower"], "--source: expected PART=FOLDER"),
        (["{picture}", "What?", "--source", "vision_tower=here"], "'vision_tower' is not a referenced part"),
    ],
)
def test_bad_questions_and_options(
    words: list[str], message: str, workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [word.format(picture=workplace.picture) for word in words]
    assert run_command("ask", workplace.model, *arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_without_a_picture_it_is_a_wrong_command(workplace: Workplace) -> None:
    assert run_command("ask", workplace.model, QUESTION) == 2
