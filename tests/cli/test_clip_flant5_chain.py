"""``sightbridge train tiny/clip-flant5-chain``: from captions to VQAScore's yes and no, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_workplace import run_command


def measured(folder: Path) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in json.loads((folder / "chain.json").read_text())}


def test_the_chain_in_smallest_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["scenes.train=12", "scenes.test=4", "scenes.size=48", "every.training.batch_size=4"]
    assert (
        run_command("train", "tiny/clip-flant5-chain", *short, "every.training.steps=2", "--out", tmp_path / "c") == 0
    )
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["run", "steps", "measured", "before", "after"] in rows
    assert any(row[:3] == ["finetune", "2", "accuracy"] for row in rows)
    steps = measured(tmp_path / "c")
    assert list(steps) == ["pretrain", "finetune"]
    assert set(steps["finetune"]["before"]) == {"validation_loss", "accuracy"}


@pytest.mark.slow
def test_the_chain_answers_yes_and_no(tmp_path: Path) -> None:
    """Four minutes on two idle cores."""
    assert run_command("train", "tiny/clip-flant5-chain", "--out", tmp_path / "chain") == 0
    asked = json.loads((tmp_path / "chain" / "scenes" / "figures_test.json").read_text())
    answers = [row["conversations"][1]["value"] for row in asked]
    assert answers.count("Yes") == answers.count("No") == len(answers) / 2 == 250
    finetune = measured(tmp_path / "chain")["finetune"]
    print(f"yes or no: accuracy {finetune['before']['accuracy']:.3f} -> {finetune['after']['accuracy']:.3f}")
    assert finetune["after"]["accuracy"] > 0.85
