"""``sightbridge predict``: a line of JSON for every picture, also for those that cannot be opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_workplace import Workplace, run_command

import sightbridge
from sightbridge.config.generation import GenerationSettings
from sightbridge.generation.answer import answer

PROMPT = "What is in the picture?"
SHORT = ("--max-new-tokens", 5)


@pytest.fixture
def pictures(workplace: Workplace, tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    shutil.copytree(workplace.picture.parent, folder)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_each_picture_gets_the_answer_it_would_get_alone(
    workplace: Workplace, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", workplace.model, pictures, workplace.picture, "--prompt", PROMPT, *SHORT, "--batch-size", 3]
    assert run_command(*command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    paths = [*sorted(pictures.glob("*.png")), workplace.picture]
    assert [line["image"] for line in lines] == [str(path) for path in paths]
    model, processor = sightbridge.load(workplace.model)
    settings = GenerationSettings(max_new_tokens=5)
    assert [line["answer"] for line in lines] == [answer(model, processor, path, PROMPT, settings) for path in paths]


def test_a_bad_picture_is_told_in_its_line_and_by_the_status(
    workplace: Workplace, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "00000.png").write_bytes(b"cut")
    out = pictures / "answers.jsonl"
    assert run_command("predict", workplace.model, pictures, "--out", out, *SHORT) == 1
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert "00000.png" in lines[0]["error"] and "answer" not in lines[0]
    assert all("answer" in line for line in lines[1:]) and len(lines) == 4
    assert "1 of 4 pictures" in capsys.readouterr().err


def test_mistakes_are_found_before_the_model_is_loaded(
    workplace: Workplace, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.jsonl").write_text("precious")
    for arguments, message in (
        ([tmp_path / "gone"], "no such picture or folder"),
        ([tmp_path / "empty"], "holds no pictures"),
        ([pictures, "--out", tmp_path / "there.jsonl"], "there already"),
        ([pictures, "--out", tmp_path / "gone" / "x.jsonl"], "cannot write"),
        ([pictures, "--temperature", -1], "temperature"),
    ):
        assert run_command("predict", tmp_path / "no model", *arguments) == 1
        out, err = capsys.readouterr()
        assert out == "" and message in err and "Traceback" not in err
    assert (tmp_path / "there.jsonl").read_text() == "precious"
