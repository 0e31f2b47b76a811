"""``sightbridge data flatten``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_workplace import run_command

import sightbridge


def test_scenes_are_flattened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = tmp_path / "scenes"
    assert run_command("data", "scenes", scenes, "--train", 6, "--test", 4, "--size", 40) == 0
    whole = json.loads((scenes / "train.json").read_text())
    whole.append({"conversations": [{"from": "gpt", "value": "Hi."}, {"from": "human", "value": "Who are you?"}]})
    (scenes / "train.json").write_text(json.dumps(whole))
    capsys.readouterr()
    out = scenes / "flat.json"
    assert run_command("data", "flatten", scenes / "train.json", out) == 0
    text, err = capsys.readouterr()
    records = sightbridge.records("llava", out)
    assert err == "" and text.splitlines() == [
        "7 rows read, 6 of them with several questions",
        "1 opening turns of the assistant left out: they answer nothing",
        f"{len(records)} rows in {out}, 1 of them without a picture",
    ]
    assert len(records) == sum(len(row["conversations"]) // 2 for row in whole)
    assert all(Path(str(record.images[0])).is_file() for record in records if record.images)


def test_a_broken_file_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.json").write_text('[{"id": 1}]')
    assert run_command("data", "flatten", tmp_path / "rows.json", tmp_path / "flat.json") == 1
    assert "rows.json, row 1: key 'conversations' is missing" in capsys.readouterr().err
    assert not (tmp_path / "flat.json").exists()
