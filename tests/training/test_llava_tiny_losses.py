"""First losses of LLaVA's and ViP-LLaVA's tiny recipes, as shipped but for their size, and what such runs leave.

Run this file as a script to write the losses anew, after a change that is meant to change them.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sightbridge.checkpoints.folder import load_model
from sightbridge.checkpoints.mm_projector import export_mm_projector
from sightbridge.config.load import read_recipe
from sightbridge.data.scenes.write import ScenesSettings, write_scenes
from sightbridge.training.run import run_recipe

LOSSES = Path(__file__).parents[1] / "golden" / "losses" / "llava_tiny.json"
LLAVA = ("pretrain", "finetune", "finetune-lora")
VIP_LLAVA = ("pretrain", "stage2", "stage3", "stage2-lora", "task", "task-lora")
RECIPES = (*(f"tiny/llava-{name}" for name in LLAVA), *(f"tiny/vip-llava-{name}" for name in VIP_LLAVA))
SHORT = ("training.steps=5", "training.batch_size=6", "training.log_every=1", "optim.eps=1e-4", "evaluation.metrics=[]")
"""``eps``: else rounding moves weights whose gradient is all but zero."""
NO_DROPOUT = "model.lora.dropout=0"


def draw(folder: Path) -> Path:
    """A few scenes, and questions about what is marked on them."""
    write_scenes(folder / "scenes", ScenesSettings(train=24, test=8, size=48, languages=("en",)))
    return folder / "scenes"


def run(recipe: str, scenes: Path, out: Path, *changes: str, resume: bool = False) -> list[float]:
    loaded = read_recipe(recipe, [f"data.root={scenes}", *SHORT, *changes])
    history = run_recipe(loaded, out, console=Console(quiet=True), resume=resume)
    return [line["loss"] for line in history if line["kind"] == "train"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_are_those_of_before(recipe: str, scenes: Path, tmp_path: Path) -> None:
    now, before = run(recipe, scenes, tmp_path / "run"), json.loads(LOSSES.read_text())[recipe]
    difference = max(abs(a - b) for a, b in zip(now, before, strict=True))
    print(f"losses of five steps, {recipe}: widest difference {difference:.1e}")
    assert difference < 1e-4
    assert min(now) < now[0]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run / "model")[0].state_dict()


def test_a_second_stage_begins_alike_with_the_firsts_folder_and_with_its_projector_file(
    scenes: Path, tmp_path: Path
) -> None:
    """And leaves the tower alone, whose five layers it reads."""
    run("tiny/vip-llava-pretrain", scenes, tmp_path / "first")
    file = tmp_path / "mm_projector.bin"
    export_mm_projector(tmp_path / "first" / "model", file)
    starts = {"folder": tmp_path / "first" / "model", "file": file}
    lists = [
        run("tiny/vip-llava-stage2", scenes, tmp_path / name, f"training.init_from={start}")
        for name, start in starts.items()
    ]
    assert lists[0] == lists[1] != run("tiny/vip-llava-stage2", scenes, tmp_path / "random")
    first, second = weights(tmp_path / "first"), weights(tmp_path / "file")
    changed = {name.split(".")[0] for name, weight in second.items() if not torch.equal(weight, first[name])}
    assert changed == {"connector", "language_model"}
    assert not (tmp_path / "first" / "model" / "language_model.safetensors").exists()


def kill_after(step: int, folder: Path) -> None:
    """Take away what a run wrote after ``step``, as if it had been killed there."""
    for checkpoint in sorted((folder / "checkpoints").iterdir()):
        if json.loads((checkpoint / "state.json").read_text())["progress"]["step"] > step:
            shutil.rmtree(checkpoint)


@pytest.mark.parametrize("recipe", ["tiny/llava-pretrain", "tiny/vip-llava-stage2-lora", "tiny/vip-llava-stage2"])
def test_a_killed_run_goes_on_to_the_last_bit(recipe: str, scenes: Path, tmp_path: Path) -> None:
    """The projector alone, which the original cannot resume; adapters with dropout beside a projector; everything."""
    first = "tiny/llava-pretrain" if recipe == "tiny/llava-pretrain" else "tiny/vip-llava-pretrain"
    run(first, scenes, tmp_path / "first")
    export_mm_projector(tmp_path / "first" / "model", tmp_path / "mm_projector.bin")
    changes = (f"training.init_from={tmp_path / 'mm_projector.bin'}", "training.save_every=2")
    straight = run(recipe, scenes, tmp_path / "straight", *changes)
    run(recipe, scenes, tmp_path / "killed", *changes)
    kill_after(4, tmp_path / "killed")
    assert run(recipe, scenes, tmp_path / "killed", *changes, resume=True) == straight
    one, other = weights(tmp_path / "straight"), weights(tmp_path / "killed")
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_adapters_beside_a_finished_models_language_model(scenes: Path, tmp_path: Path) -> None:
    """task-lora begins with the weights of a model that was trained in full, and stores them with its adapters."""
    run("tiny/vip-llava-stage2", scenes, tmp_path / "whole")
    start = f"training.init_from={tmp_path / 'whole' / 'model'}"
    began = run("tiny/vip-llava-task-lora", scenes, tmp_path / "adapted", start, NO_DROPOUT)[0]
    fresh = run("tiny/vip-llava-task-lora", scenes, tmp_path / "fresh", NO_DROPOUT)[0]
    assert began < 0.9 * fresh
    before, after = weights(tmp_path / "whole"), weights(tmp_path / "adapted")
    kept = {name: weight for name, weight in after.items() if ".lora_" not in name}
    plain = {name.replace(".base_layer", "").replace("base_model.model.", ""): w for name, w in kept.items()}
    same = [name for name, weight in before.items() if name.startswith("language_model") and name in plain]
    assert len(same) > 10 and all(torch.equal(plain[name], before[name]) for name in same)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        drawn = draw(Path(place))
        found = {name: run(name, drawn, Path(place) / name) for name in RECIPES}
    LOSSES.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(LOSSES.read_text())
