"""``sightbridge convert`` and ``merge-weights``: what they print, and how they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_workplace import run_command

from foreign_files import OPT_HEADS, write_lavis, write_tokenizer
from sightbridge.checkpoints.folder import load_model


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "words", 47)
    return write_lavis(tmp_path / "whole.pth", "stage2_opt_prompt")


def test_a_file_becomes_a_model_and_every_part_of_it_is_shown(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words"
    assert run_command("convert", whole, tmp_path / "out", *OPT_HEADS, "--tokenizer", words) == 0
    shown = capsys.readouterr().out
    assert "BLIP-2 stage 2" in shown
    for part in ("out/vision_tower", "out/connector.safetensors", "out/language_model"):
        assert part in shown
    assert f"Written to {tmp_path / 'out'}." in shown
    assert "note: " in shown
    load_model(tmp_path / "out")


def test_parts_of_several_files_are_merged(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["--vision", whole, "--bridge", whole, "--language-model", whole, "--tokenizer", tmp_path / "words"]
    assert run_command("merge-weights", tmp_path / "out", *OPT_HEADS, *parts) == 0
    assert capsys.readouterr().out.count("whole.pth: BLIP-2 stage 2") == 3
    load_model(tmp_path / "out")
    assert run_command("merge-weights", tmp_path / "again", *OPT_HEADS, *parts, "--bridge", whole) == 1
    assert "--later-wins" in capsys.readouterr().err


def test_what_a_converted_model_is_made_of_is_shown(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"model.{setting}" for setting in OPT_HEADS]  # as recipes call them
    assert run_command("convert", whole, tmp_path / "out", *settings, "--tokenizer", tmp_path / "words") == 0
    capsys.readouterr()
    assert run_command("inspect", "model", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert f"converted from   {whole}: BLIP-2 stage 2" in shown
    assert "blip_2_vision_model" in shown
    assert "[{" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "nothing.pth", "out"], "nothing.pth: no such file"),
        (["convert", "WHOLE", "WHOLE"], "is there already"),
        (["convert", "WHOLE", "out", "prompt"], "'prompt' is not of the form key=value"),
        (["convert", "WHOLE", "out", *OPT_HEADS, "prompt.templat=x"], "prompt.templat: .*Did you mean.*template"),
        (
            ["convert", "WHOLE", "out", "vision_tower.config.num_attention_heads=5", *OPT_HEADS[1:]],
            "width 48 cannot have 5 attention",
        ),
        (["convert", "WHOLE", "out", *OPT_HEADS[:2], f"{OPT_HEADS[2][:-1]}0"], "width 40 cannot have 0 attention"),
        (["convert", "WHOLE", "out", "--vision", "openai/clip"], "vision tower of its own, so --vision is not needed"),
        (["merge-weights", "out"], "where the connector is: --bridge"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing(
    arguments: list[str], message: str, whole: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import re

    monkeypatch.chdir(tmp_path)
    assert run_command(*(str(whole) if word == "WHOLE" else word for word in arguments)) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") <= 2
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_help_tells_the_two_merges_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("merge-weights", "--help") == 0
    assert "'sightbridge merge'" in capsys.readouterr().out
