"""mBLIP's recipes have the shapes of the real parts, and steps as large as the reference's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import transformers

from sightbridge.config.catalogue import RECIPES
from sightbridge.config.load import read_recipe
from sightbridge.config.recipe import Recipe
from sightbridge.models import build
from sightbridge.models.lora_families import FAMILIES
from sightbridge.models.outline import outline
from sightbridge.text.template import load_template

CONFIGS: dict[str, Any] = {
    "Salesforce/blip2-flan-t5-xl": transformers.Blip2Config(),
    "bigscience/mt0-xl": transformers.MT5Config(
        d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_decoder_layers=24, num_heads=32, vocab_size=250112
    ),
    "bigscience/bloomz-7b1": transformers.BloomConfig(hidden_size=4096, n_layer=30, n_head=32, vocab_size=250880),
}
"""What the hub says of the models that recipes name, as far as shapes go."""
ADAPTED = {"bigscience/mt0-xl": 432, "bigscience/bloomz-7b1": 120}
"""Layers that ``lora_all`` adapts: 24 x (4 + 3) and 24 x (8 + 3); 30 x 4."""
STEPS = {
    "mblip/warmup": (128, 5e-3, None, (8000, None)),
    "mblip/instruct-mt0": (128, 1e-5, 2e-4, (None, 2)),
    "mblip/instruct-bloomz": (128, 1e-5, 2e-4, (None, 2)),
    "mblip/finetune-xgqa": (256, 5e-5, None, (None, 5)),
    "mblip/finetune-xvnli": (128, 1e-5, None, (None, 10)),
    "mblip/finetune-marvl": (128, 1e-5, None, (None, 20)),
}
"""Rows of a step, learning rate, that of the adapters if it is another, and the length in steps or epochs."""


def mblip(name: str) -> Recipe:
    recipe = read_recipe(name).recipe
    assert isinstance(recipe, Recipe)
    return recipe


@pytest.mark.parametrize("name", STEPS)
def test_recipes_have_the_shapes_of_the_real_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.AutoConfig, "from_pretrained", lambda source, **_: copy.deepcopy(CONFIGS[source]))
    recipe = mblip(name)
    model = recipe.model
    shape, template = outline(model), load_template(model.prompt.template)
    assert shape.tokens_per_image == 32
    assert shape.encoder_decoder == template.encoder_decoder == (not name.endswith("bloomz"))
    pictures = 2 if "marvl" in name else 1
    context_and_label = 128 if shape.encoder_decoder else 256
    assert model.prompt.max_length == pictures * 32 + context_and_label
    assert (model.image.augment == "none") == ("marvl" in name)
    assert model.language_model.dtype == "bfloat16", "mT0 overflows in float16"
    if model.lora:
        source = model.language_model.source or ""
        config = CONFIGS[source]
        assert FAMILIES[config.model_type].promise("lora_all", config) == ADAPTED[source]
        assert (model.lora.preset, model.lora.r, model.lora.alpha, model.lora.dropout) == ("lora_all", 8, 16, 0.05)


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_those_of_the_reference(name: str) -> None:
    recipe = mblip(name)
    parts, optim, training = recipe.training.parts, recipe.optim, recipe.training
    found = (training.global_batch, optim.lr, parts.language_model.lr, (training.steps, training.epochs))
    assert found == STEPS[name]
    assert training.global_batch is not None and training.global_batch % training.batch_size == 0
    assert (optim.schedule, optim.warmup_steps, optim.weight_decay, optim.clip_norm) == ("cosine", 1000, 0.1, 1.0)
    assert parts.connector.only == (["output"] if name == "mblip/warmup" else [])
    assert parts.language_model.train == ("frozen" if name == "mblip/warmup" else "lora")
    assert recipe.model.language_model.quantize == ("nf4" if name.endswith("bloomz") else "8bit")
    assert recipe.data.padding_side == ("left" if name.endswith("bloomz") else "right")


@pytest.mark.parametrize("name", STEPS)
def test_every_recipe_has_a_twin_that_trains_the_same_parts(name: str) -> None:
    full, twin = mblip(name), mblip(f"tiny/{name.replace('/', '-')}")
    for part in ("vision_tower", "connector", "language_model"):
        ours, theirs = getattr(twin.training.parts, part), getattr(full.training.parts, part)
        assert (ours.train, ours.only, ours.lr is None) == (theirs.train, theirs.only, theirs.lr is None), part
    assert (twin.model.lora, twin.model.prompt.template) == (full.model.lora, full.model.prompt.template)
    assert twin.data.padding_side == full.data.padding_side


@pytest.mark.parametrize("path", sorted((RECIPES / "mblip").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_say_what_they_are_and_where_their_numbers_come_from(path: Path) -> None:
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = " ".join(line.lstrip("# ") for line in head)
    assert text.startswith("mBLIP, ") and "Numbers: gregor-ge/mBLIP" in text
    assert "sightbridge train mblip/" in text
