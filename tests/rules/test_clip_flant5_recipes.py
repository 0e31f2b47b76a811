"""CLIP-FlanT5's recipes have the shapes of the real parts, and the reference's values."""

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
from sightbridge.models.outline import outline
from sightbridge.text.template import load_template

T5: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "vocab_size": 32128, "num_layers": 24}
CLIP: dict[str, Any] = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
CONFIGS: dict[str, Any] = {
    "openai/clip-vit-large-patch14-336": transformers.CLIPVisionConfig(image_size=336, **CLIP),
    "google/flan-t5-xl": transformers.T5Config(d_model=2048, **T5),
    "google/flan-t5-xxl": transformers.T5Config(d_model=4096, **T5),
    "google-t5/t5-11b": transformers.T5Config(d_model=1024, vocab_size=32128, num_layers=24, d_ff=65536, num_heads=128),
}
"""What the hub says of the models that recipes name, as far as shapes go."""
RATES = {"pretrain": 1e-2, "finetune": 2e-5}
STEPS = {
    "pretrain": ("google/flan-t5-xl", 32, 256, "t5_plain_split_text"),
    "pretrain-xxl": ("google/flan-t5-xxl", 32, 256, "t5_plain_split_text"),
    "pretrain-no-split-text": ("google/flan-t5-xxl", 32, 256, "t5_plain"),
    "pretrain-t5-11b": ("google-t5/t5-11b", 20, 160, "t5_plain_split_text"),
    "finetune": ("google/flan-t5-xl", 6, 96, "t5_v1"),
    "finetune-xxl": ("google/flan-t5-xxl", 6, 96, "t5_v1"),
    "finetune-t5-11b": ("google-t5/t5-11b", 2, 96, "t5_v1"),
}
"""Language model, rows of a batch and of a step, and template."""


def clip_flant5(name: str) -> Recipe:
    recipe = read_recipe(name).recipe
    assert isinstance(recipe, Recipe)
    return recipe


def test_every_recipe_is_here() -> None:
    assert {path.stem for path in (RECIPES / "clip_flant5").glob("*.yaml")} == set(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_recipes_have_the_shapes_of_the_real_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.AutoConfig, "from_pretrained", lambda source, **_: copy.deepcopy(CONFIGS[source]))
    model = clip_flant5(f"clip_flant5/{name}").model
    shape = outline(model)
    assert shape.tokens_per_image == 576 and shape.encoder_decoder
    assert (model.vision_tower.layers, model.vision_tower.class_token) == ([-2], "drop")
    assert (model.connector.kind, model.connector.options) == ("mlp", {"layers": 2})
    assert model.prompt.max_length == 576 + 2048 and model.prompt.max_answer_length == 2048
    assert model.language_model.dtype == ("bfloat16" if name.startswith("pretrain") else "float32"), "float16 overflows"


@pytest.mark.parametrize("name", STEPS)
def test_values_are_those_of_the_reference(name: str) -> None:
    recipe, stage = clip_flant5(f"clip_flant5/{name}"), name.split("-")[0]
    parts, optim, training, model = recipe.training.parts, recipe.optim, recipe.training, recipe.model
    found = (model.language_model.source, training.batch_size, training.global_batch, model.prompt.template)
    assert found == STEPS[name]
    assert (optim.lr, optim.schedule, optim.warmup_ratio, optim.min_lr) == (RATES[stage], "cosine", 0.03, 0.0)
    assert (optim.weight_decay, optim.betas, optim.eps, optim.clip_norm) == (0.0, (0.9, 0.999), 1e-8, 1.0)
    assert (training.epochs, training.steps, training.precision) == (1, None, "bf16")
    assert parts.language_model.gradient_checkpointing and not parts.vision_tower.gradient_checkpointing
    trained = [part for part in type(parts).model_fields if getattr(parts, part).train == "full"]
    assert trained == (["connector"] if stage == "pretrain" else ["connector", "language_model"])
    assert (model.image.size, model.image.fit) == (336, "crop" if stage == "pretrain" else "pad")
    assert recipe.data.group_by_length == (False if stage == "pretrain" else "llava")
    switches = load_template(model.prompt.template).resolve(model.prompt.switches)
    expected = {"pretrain": {"eos_before_image", "drop_user_text"}}.get(
        stage, {"eos_before_image", "image_first", "drop_leading_assistant"}
    )
    split = {"split_answer"} if model.prompt.template == "t5_plain_split_text" else set()
    assert {switch for switch, on in switches.items() if on} == expected | split


@pytest.mark.parametrize("name", ["pretrain", "pretrain-no-split-text", "finetune"])
def test_every_recipe_has_a_twin_that_trains_the_same_parts(name: str) -> None:
    full, twin = clip_flant5(f"clip_flant5/{name}"), clip_flant5(f"tiny/clip-flant5-{name}")
    for part in ("vision_tower", "connector", "language_model"):
        ours, theirs = getattr(twin.training.parts, part), getattr(full.training.parts, part)
        assert (ours.train, ours.only) == (theirs.train, theirs.only), part
    assert twin.model.connector == full.model.connector
    assert twin.model.prompt.model_copy(update={"max_length": 2624, "max_answer_length": 2048, "system": None}) == (
        full.model.prompt
    )
    assert (twin.optim.warmup_ratio, twin.optim.schedule) == (full.optim.warmup_ratio, full.optim.schedule)
    assert twin.data.group_by_length == full.data.group_by_length


@pytest.mark.parametrize("path", sorted((RECIPES / "clip_flant5").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_say_what_they_are_and_where_their_numbers_come_from(path: Path) -> None:
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = " ".join(line.lstrip("# ") for line in head)
    assert text.startswith("CLIP-FlanT5, ") and "Numbers: linzhiqiu/CLIP-FlanT5, scripts/v1_5/" in text
    assert f"sightbridge train clip_flant5/{path.stem} " in text
