"""``sightbridge data mix``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_workplace import run_command

import sightbridge


@pytest.fixture
def scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "scenes"
    assert run_command("data", "scenes", folder, "--train", 12, "--test", 8, "--size", 40) == 0
    capsys.readouterr()
    return folder


def test_scenes_become_instructions(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = scenes / "mix.json"
    assert run_command("data", "mix", "scenes", f"root={scenes}", "--out", out, "--show", 9) == 0
    text, err = capsys.readouterr()
    assert err == ""
    records = sightbridge.records("mblip", out)
    parts = {record.meta["part"] for record in records}
    assert parts == {"captions", "matching", "vqa", "vqg", "questions", "statements"}
    assert {record.language for record in records} == {"en", "de", "es", "zh"}
    assert all(Path(str(record.images[0])).is_file() for record in records)
    assert f"{len(records):,} rows in {out}" in text
    assert text.count("⟦") == 9 and all(f"{part}, " in text for part in parts)
    (row,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["de"]]
    assert row[1:7] == ["3", "3", "12", "12", "12", "3"] and row[-1].endswith("%")
    before = out.read_bytes()
    assert run_command("data", "mix", "scenes", f"root={scenes}", "--out", out) == 0
    assert out.read_bytes() == before


def test_scenes_to_be_answered(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = scenes / "test.jsonl"
    assert run_command("data", "mix", "scenes_test", f"root={scenes}", "--out", out) == 0
    records = sightbridge.records("mblip", out)
    assert all(record.turns[-1].text is None and record.meta["answers"] for record in records)
    assert {record.meta["part"] for record in records} == {"captions", "vqa", "regions", "statements"}


def test_a_dry_run_counts_and_writes_nothing(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scenes / "one.json").write_text(json.dumps([{"image": "a.jpg", "caption": "A."}] * 200))
    mixture = scenes / "my.yaml"
    mixture.write_text("description: mine\nparts:\n  web: {kind: captions, path: one.json}\n")
    arguments = ["data", "mix", mixture, f"root={scenes}", "missing_pictures=ignore", "--dry-run"]
    assert run_command(*arguments) == 1
    assert "there is no translator" in capsys.readouterr().err
    before = sorted(scenes.iterdir())
    assert run_command(*arguments, "translator.kind=identity") == 0
    text, _ = capsys.readouterr()
    assert sorted(scenes.iterdir()) == before
    (english,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["en"]]
    assert english[1] == "88" and " more" in text  # 43.84 % of 200
    assert "languages got no row" in text and "rows in other languages are NOT translated" in text


def test_mistakes_are_told_in_a_line(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("data", "mix", "scenes", f"root={scenes}") == 1
    assert "--out FILE says where to write" in capsys.readouterr().err
    assert run_command("data", "mix", "scenes", "root=nowhere", "--out", "mix.txt") == 1  # before any file is read
    assert "'mix.txt' should end in .json" in capsys.readouterr().err
    assert run_command("data", "mix", "scene", "--dry-run") == 1
    assert "Did you mean 'scenes'?" in capsys.readouterr().err
    assert run_command("data", "mix", "scenes", f"root={scenes}", "languages=[en, deu]", "--dry-run") == 1
    assert "unknown language 'deu'" in capsys.readouterr().err
