"""First losses of LLaVA's and ViP-LLaVA's tiny recipes, as shipped but for their size, and what such runs leave.

Run this file as a script to write the losses anew, after a change that is meant to change them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from twins import Twins

from sightbridge.checkpoints.folder import load_model
from sightbridge.checkpoints.mm_projector import export_mm_projector
from sightbridge.data.scenes.write import ScenesSettings

LLAVA = ("pretrain", "finetune", "finetune-lora")
VIP_LLAVA = ("pretrain", "stage2", "stage3", "stage2-lora", "task", "task-lora")
TWINS = Twins(
    "llava",
    (*(f"llava-{name}" for name in LLAVA), *(f"vip-llava-{name}" for name in VIP_LLAVA)),
    changes=("training.batch_size=6", "evaluation.metrics=[]"),
    scenes=ScenesSettings(train=24, test=8, size=48, languages=("en",)),
)
NO_DROPOUT = "model.lora.dropout=0"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TWINS.draw(tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("recipe", TWINS.recipes)
def test_losses_are_those_of_before(recipe: str, scenes: Path, tmp_path: Path) -> None:
    TWINS.compare(recipe, scenes, tmp_path / "run")


@pytest.fixture(scope="module")
def pretrained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViP-LLaVA's first stage, and its projector in a file beside the model."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    TWINS.run("tiny/vip-llava-pretrain", scenes, run)
    export_mm_projector(run / "model", run / "mm_projector.bin")
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run / "model")[0].state_dict()


def test_a_second_stage_begins_alike_with_the_firsts_folder_and_with_its_projector_file(
    scenes: Path, pretrained: Path, tmp_path: Path
) -> None:
    """And leaves the tower alone, whose five layers it reads."""
    starts = {"folder": pretrained / "model", "file": pretrained / "mm_projector.bin"}
    lists = [
        TWINS.run("tiny/vip-llava-stage2", scenes, tmp_path / name, f"training.init_from={start}")
        for name, start in starts.items()
    ]
    assert lists[0] == lists[1] != TWINS.run("tiny/vip-llava-stage2", scenes, tmp_path / "random")
    first, second = weights(pretrained), weights(tmp_path / "file")
    changed = {name.split(".")[0] for name, weight in second.items() if not torch.equal(weight, first[name])}
    assert changed == {"connector", "language_model"}
    assert not (pretrained / "model" / "language_model.safetensors").exists()


def kill_after(step: int, folder: Path) -> None:
    """Take away what a run wrote after ``step``, as if it had been killed there."""
    for checkpoint in sorted((folder / "checkpoints").iterdir()):
        if json.loads((checkpoint / "state.json").read_text())["progress"]["step"] > step:
            shutil.rmtree(checkpoint)


@pytest.mark.parametrize("recipe", ["tiny/llava-pretrain", "tiny/vip-llava-stage2-lora", "tiny/vip-llava-stage2"])
def test_a_killed_run_goes_on_to_the_last_bit(recipe: str, scenes: Path, pretrained: Path, tmp_path: Path) -> None:
    """The projector alone, which the original cannot resume; adapters with dropout beside a projector; everything."""
    if recipe == "tiny/llava-pretrain":
        TWINS.run(recipe, scenes, tmp_path / "first")
        export_mm_projector(tmp_path / "first" / "model", tmp_path / "first" / "mm_projector.bin")
    first = tmp_path / "first" if recipe == "tiny/llava-pretrain" else pretrained
    changes = (f"training.init_from={first / 'mm_projector.bin'}", "training.save_every=2")
    straight = TWINS.run(recipe, scenes, tmp_path / "straight", *changes)
    shutil.copytree(tmp_path / "straight", tmp_path / "killed")
    kill_after(4, tmp_path / "killed")
    assert TWINS.run(recipe, scenes, tmp_path / "killed", *changes, resume=True) == straight
    one, other = weights(tmp_path / "straight"), weights(tmp_path / "killed")
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_adapters_beside_a_finished_models_language_model(scenes: Path, tmp_path: Path) -> None:
    """task-lora begins with the weights of a model that was trained in full, and stores them with its adapters."""
    TWINS.run("tiny/vip-llava-stage2", scenes, tmp_path / "whole")
    start = f"training.init_from={tmp_path / 'whole' / 'model'}"
    began = TWINS.run("tiny/vip-llava-task-lora", scenes, tmp_path / "adapted", start, NO_DROPOUT)[0]
    fresh = TWINS.run("tiny/vip-llava-task-lora", scenes, tmp_path / "fresh", NO_DROPOUT)[0]
    assert began < 0.9 * fresh
    before, after = weights(tmp_path / "whole"), weights(tmp_path / "adapted")
    kept = {name: weight for name, weight in after.items() if ".lora_" not in name}
    plain = {name.replace(".base_layer", "").replace("base_model.model.", ""): w for name, w in kept.items()}
    same = [name for name, weight in before.items() if name.startswith("language_model") and name in plain]
    assert len(same) > 10 and all(torch.equal(plain[name], before[name]) for name in same)


if __name__ == "__main__":
    TWINS.write_anew()
