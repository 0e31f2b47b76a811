"""``sightbridge train tiny/mblip-chain``: from a Q-Former to answers in four languages, each measured for itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_workplace import run_command

LANGUAGES = ("de", "en", "es", "zh")


def measured(folder: Path) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in json.loads((folder / "chain.json").read_text())}


def test_the_chain_in_smallest_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["scenes.train=120", "scenes.test=8", "scenes.size=48", "every.training.batch_size=4"]
    short += ["every.training.steps=2", "chain.0.change.training.steps=2", "chain.2.change.evaluation.records=8"]
    assert run_command("train", "tiny/mblip-chain", *short, "--out", tmp_path / "chain") == 0
    out = capsys.readouterr().out
    assert "36 layers adapted" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["run", "measured", "language", "before", "after"] in rows
    steps = measured(tmp_path / "chain")
    assert list(steps) == ["stage1", "warmup", "instruct"]
    assert {f"accuracy/{code}" for code in LANGUAGES} <= set(steps["instruct"]["before"])
    for code in LANGUAGES:
        assert any(row[:3] == ["instruct", "accuracy", code] for row in rows)


@pytest.mark.slow
def test_the_chain_learns_in_every_language(tmp_path: Path) -> None:
    """Four minutes on two idle cores."""
    assert run_command("train", "tiny/mblip-chain", "--out", tmp_path / "chain") == 0
    instruct = measured(tmp_path / "chain")["instruct"]
    print({name: f"{instruct['before'][name]:.3f} -> {value:.3f}" for name, value in instruct["after"].items()})
    assert instruct["after"]["accuracy"] > 0.6
    for code in LANGUAGES:
        assert instruct["after"][f"accuracy/{code}"] > instruct["before"][f"accuracy/{code}"] + 0.1
