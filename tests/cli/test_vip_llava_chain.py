"""``sightbridge train tiny/vip-llava-chain``: from captions to answers about what a mark points at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_workplace import run_command

from sightbridge.visual_prompts import SHAPES


def test_the_chain_in_smallest_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["scenes.train=12", "scenes.test=8", "scenes.size=48", "every.training.batch_size=4"]
    short += [f"chain.{step}.change.training.steps=2" for step in range(3)]
    short += [f"chain.{step}.change.evaluation.records=16" for step in range(3)]
    assert run_command("train", "tiny/vip-llava-chain", *short, "--out", tmp_path / "chain") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["run", "measured", "mark", "marked", "unmarked", "difference"] in rows
    for shape in ("all", *SHAPES):
        for stage in ("stage2", "stage3"):
            assert any(row[:-3] == [stage, "accuracy", *shape.split()] for row in rows), (stage, shape)


@pytest.mark.slow
def test_the_chain_learns_to_use_marks(tmp_path: Path) -> None:
    """Ten minutes on two idle cores."""
    assert run_command("train", "tiny/vip-llava-chain", "--out", tmp_path / "chain") == 0
    steps = {step["name"]: step["after"] for step in json.loads((tmp_path / "chain" / "chain.json").read_text())}
    after = steps["stage3"]
    gains = {shape: after[f"accuracy/{shape}"] - after[f"unmarked_accuracy/{shape}"] for shape in SHAPES}
    print({shape: f"{gain:+.3f}" for shape, gain in gains.items()})
    assert sum(gain >= 0.30 for gain in gains.values()) >= 4, gains
