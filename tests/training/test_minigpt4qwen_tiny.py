"""MiniGPT4Qwen's tiny recipes: their first losses, as shipped but for their size, and what changes while they train.

Run this file as a script to write the losses anew, after a change that is meant to change them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from twins import Twins

from sightbridge.checkpoints.folder import load_any_model, load_model
from sightbridge.config.load import read_recipe
from sightbridge.training.run import run_recipe

NAMES = ("align", "two-stage-pretrain", "two-stage-sft", "two-stage-sft-lora", "two-stage-sft-video")
TWINS = Twins(
    "minigpt4qwen",
    tuple(f"minigpt4qwen-{name}" for name in NAMES),
    changes=("training.batch_size=6", "evaluation.metrics=[]"),
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TWINS.draw(tmp_path_factory.mktemp("minigpt4qwen"))


@pytest.mark.parametrize("recipe", TWINS.recipes)
def test_losses_are_those_of_before(recipe: str, scenes: Path, tmp_path: Path) -> None:
    TWINS.compare(recipe, scenes, tmp_path / "run")


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
        TWINS.run("tiny/minigpt4qwen-align", scenes, out, f"training.init_from={stage1}", f"training.steps={steps}")
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
    TWINS.run("tiny/minigpt4qwen-align", scenes, tmp_path / "align", f"training.init_from={stage1}")
    start = f"training.init_from={tmp_path / 'align' / 'model'}"
    TWINS.run("tiny/minigpt4qwen-two-stage-sft-lora", scenes, tmp_path / "lora", start, "training.steps=1")
    TWINS.run("tiny/minigpt4qwen-two-stage-sft", scenes, tmp_path / "full", start, "training.steps=2")
    align, lora, full = (load_model(tmp_path / name / "model")[0] for name in ("align", "lora", "full"))
    projection = {"output.weight", "output.bias"}
    assert differing(align.connector, lora.connector) <= projection
    assert differing(align.connector, full.connector) <= projection
    assert len(differing(align.language_model, full.language_model)) > 5
    assert (tmp_path / "lora" / "model" / "adapter" / "adapter_model.safetensors").is_file()


def _size(stage1: Path) -> int:
    return (stage1 / "qformer.safetensors").stat().st_size


if __name__ == "__main__":
    TWINS.write_anew()
