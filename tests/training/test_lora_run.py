"""Recipes with adapters on the engine: trained, said, resumed, quantised, merged, and refused before anything loads."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sightbridge.checkpoints.describe import describe
from sightbridge.checkpoints.folder import load_model
from sightbridge.checkpoints.merge import merge_model
from sightbridge.config.load import read_recipe
from sightbridge.data.readers import READERS
from sightbridge.data.scenes.write import ScenesSettings, write_scenes
from sightbridge.errors import SettingsError
from sightbridge.generation.answer import answer_batch
from sightbridge.models.quantize import check_quantization
from sightbridge.training.run import run_recipe

LORA = ("model.lora.preset=lora_all", "training.parts.language_model={train: lora, lr: 1e-2}")
SHORT = ("training.steps=6", "training.batch_size=8", "training.log_every=1", "optim.warmup_steps=2", "data.cache=null")
RECIPES = ("tiny/decoder-qformer", "tiny/encdec-qformer")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, ScenesSettings(train=24, test=12, languages=("en",), size=48))
    return folder


def run(scenes: Path, folder: Path, *overrides: str, recipe: str = RECIPES[0]) -> tuple[list[float], str]:
    """Losses of a short run, and what it printed."""
    said = io.StringIO()
    loaded = read_recipe(recipe, [f"data.root={scenes}", *SHORT, *overrides])
    history = run_recipe(loaded, folder, console=Console(file=said, width=200))
    return [line["loss"] for line in history if line["kind"] == "train"], said.getvalue()


@pytest.mark.parametrize("recipe", RECIPES)
def test_adapters_train_and_the_merged_model_gives_the_same_answers(scenes, tmp_path, recipe):
    losses, said = run(scenes, tmp_path / "run", *LORA, recipe=recipe)
    assert losses[-1] < losses[0]
    manifest = describe(tmp_path / "run" / "model").manifest
    assert f"LoRA: {manifest.adapter.layers} layers adapted (preset lora_all: " in said
    assert f"r 8, alpha 16, {manifest.adapter.parameters:,} weights" in said
    assert manifest.parts["language_model"].file is None and manifest.adapter.trained

    merge_model(tmp_path / "run" / "model", tmp_path / "merged")
    adapted, merged = load_model(tmp_path / "run" / "model"), load_model(tmp_path / "merged")
    assert said_to(*adapted, scenes) == said_to(*merged, scenes)
    assert merged[0].language_model.has_own_head == adapted[0].language_model.has_own_head


def said_to(model, processor, scenes: Path) -> list[str]:
    """Its answers to what is asked about some scenes."""
    return answer_batch(model, processor, list(READERS["llava"](scenes / "test.json", scenes))[:6])


def test_a_killed_run_with_adapters_goes_on(scenes, tmp_path):
    straight, _ = run(scenes, tmp_path / "straight", *LORA, "training.save_every=3")
    run(scenes, tmp_path / "killed", *LORA, "training.save_every=3")
    checkpoints = sorted((tmp_path / "killed" / "checkpoints").iterdir())
    for path in checkpoints[-1].iterdir():
        path.unlink()  # the last one was half written
    checkpoints[-1].rmdir()
    loaded = read_recipe(RECIPES[0], [f"data.root={scenes}", *SHORT, *LORA, "training.save_every=3"])
    history = run_recipe(loaded, tmp_path / "killed", resume=True, console=Console(file=io.StringIO()))
    assert [line["loss"] for line in history if line["kind"] == "train"] == straight
    one, other = (load_model(tmp_path / name / "model")[0].state_dict() for name in ("straight", "killed"))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.parametrize("kind", ["8bit", "nf4"])
def test_adapters_train_beside_a_quantised_model(scenes, tmp_path, kind):
    pytest.importorskip("bitsandbytes")
    try:
        check_quantization(kind, "cpu")
    except SettingsError as error:
        pytest.skip(str(error))
    losses, said = run(scenes, tmp_path / "run", *LORA, f"model.language_model.quantize={kind}")
    assert losses[-1] < losses[0] and f"linear layers held in {kind}, the rest as it is" in said
    settings = json.loads((tmp_path / "run" / "model" / "sightbridge.json").read_text())["settings"]
    assert settings["language_model"]["quantize"] == kind
    model, processor = load_model(tmp_path / "run" / "model")
    assert len(said_to(model, processor, scenes)) == 6


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        (("training.parts.language_model.train=lora",), "training.parts.language_model.train", "no adapters to train"),
        (
            ("model.lora.preset=lora", "training.parts.language_model.train=full"),
            "training.parts.language_model.train",
            "train=lora, or model.lora=null",
        ),
        (
            ("model.language_model.quantize=nf4", "training.parts.language_model.train=full"),
            "model.language_model.quantize",
            "cannot be trained in full",
        ),
        (("model.lora.targets=[q_porj]",), "model.lora.targets", "Did you mean 'q_proj'"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_loads(scenes, tmp_path, overrides, key, message):
    with pytest.raises(SettingsError, match=message) as caught:
        run(scenes, tmp_path / "run", *overrides)
    assert caught.value.key == key and not (tmp_path / "run").exists()
