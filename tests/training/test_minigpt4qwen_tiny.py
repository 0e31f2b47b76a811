"""MiniGPT4Qwen's tiny recipes: their first losses, as shipped but for their size, and what changes while they train.

Run this file as a script to write the losses anew, after a change that is meant to change them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from sightbridge.checkpoints.folder import load_any_model, load_model
from sightbridge.config.load import read_recipe
from sightbridge.data.scenes.write import ScenesSettings, write_scenes
from sightbridge.training.run import run_recipe

LOSSES = Path(__file__).parents[1] / "golden" / "losses" / "minigpt4qwen_tiny.json"
TWINS = ("align", "two-stage-pretrain", "two-stage-sft", "two-stage-sft-lora", "two-stage-sft-video")
RECIPES = tuple(f"tiny/minigpt4qwen-{name}" for name in TWINS)
SHORT = ("training.steps=5", "training.batch_size=6", "training.log_every=1", "optim.eps=1e-4", "evaluation.metrics=[]")
"""``eps``: else rounding moves weights whose gradient is all but zero."""


def draw(folder: Path) -> Path:
    write_scenes(folder / "scenes", ScenesSettings(train=24, test=4, size=48, languages=("en",)))
    return folder / "scenes"


def run(recipe: str, scenes: Path, out: Path, *changes: str) -> list[float]:
    loaded = read_recipe(recipe, [f"data.root={scenes}", *SHORT, *changes])
    history = run_recipe(loaded, out, console=Console(quiet=True))
    return [line["loss"] for line in history if line["kind"] == "train"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("minigpt4qwen"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_are_those_of_before(recipe: str, scenes: Path, tmp_path: Path) -> None:
    now, before = run(recipe, scenes, tmp_path / "run"), json.loads(LOSSES.read_text())[recipe]
    difference = max(abs(a - b) for a, b in zip(now, before, strict=True))
    print(f"losses of five steps, {recipe}: widest difference {difference:.1e}")
    assert difference < 1e-4
    assert min(now) < now[0]


@pytest.fixture(scope="module")
def stage1(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage1") / "run"
    loaded = read_recipe("tiny/blip2-stage1", [f"data.root={scenes}", "training.steps=2", "training.batch_size=6"])
    run_recipe(loaded, out, console=Console(quiet=True))
    return out / "model"


def differing(a: Any, b: Any) -> set[str]:
    """Names of the weights of two models that are not the same bit for bit."""
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    return {name for name, weight in a.state_dict().items() if not torch.equal(weight, theirs[name])}


def test_alignment_changes_the_projection_and_not_a_bit_of_anything_else(
    scenes: Path, stage1: Path, tmp_path: Path
) -> None:
    starts = (tmp_path / "one", tmp_path / "five")
    for out, steps in zip(starts, (1, 5), strict=True):
        run("tiny/minigpt4qwen-align", scenes, out, f"training.init_from={stage1}", f"training.steps={steps}")
    one, five = (load_model(out / "model")[0] for out in starts)
    assert differing(one, five) == {"connector.output.weight", "connector.output.bias"}
    first = load_any_model(stage1)[0]
    kept = first.get_submodule("qformer").state_dict()
    read = {n: w for n, w in five.connector.state_dict().items() if not n.startswith("output.")}
    assert len(read) > 30 and all(torch.equal(weight, kept[name]) for name, weight in read.items())
    assert not differing(first.vision_tower, five.vision_tower)

    file = starts[1] / "model" / "connector.safetensors"
    weights = load_file(file)
    assert set(weights) == {"output.weight", "output.bias"}
    print(f"stored of the connector: {file.stat().st_size:,} bytes; the first stage's: {_size(stage1):,}")
    assert not (starts[1] / "model" / "language_model.safetensors").exists()


def test_the_second_stage_starts_from_the_firsts_folder_alone(scenes: Path, stage1: Path, tmp_path: Path) -> None:
    run("tiny/minigpt4qwen-align", scenes, tmp_path / "align", f"training.init_from={stage1}")
    start = f"training.init_from={tmp_path / 'align' / 'model'}"
    run("tiny/minigpt4qwen-two-stage-sft-lora", scenes, tmp_path / "lora", start, "training.steps=1")
    run("tiny/minigpt4qwen-two-stage-sft", scenes, tmp_path / "full", start, "training.steps=2")
    align, lora, full = (load_model(tmp_path / name / "model")[0] for name in ("align", "lora", "full"))
    projection = {"output.weight", "output.bias"}
    assert differing(align.connector, lora.connector) <= projection
    assert differing(align.connector, full.connector) <= projection
    assert len(differing(align.language_model, full.language_model)) > 5
    assert (tmp_path / "lora" / "model" / "adapter" / "adapter_model.safetensors").is_file()


def _size(stage1: Path) -> int:
    return (stage1 / "qformer.safetensors").stat().st_size


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        drawn = draw(Path(place))
        found = {name: run(name, drawn, Path(place) / name) for name in RECIPES}
    LOSSES.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(LOSSES.read_text())
