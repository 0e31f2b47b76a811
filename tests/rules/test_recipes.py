"""Every shipped recipe holds together: its settings fit one another, and BLIP-2's have the shapes of the real parts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import transformers

from sightbridge.config.catalogue import RECIPES
from sightbridge.config.load import read_recipe, recipe_names
from sightbridge.config.qformer_recipe import QFormerRecipe
from sightbridge.config.recipe import Recipe
from sightbridge.data.readers import get_reader
from sightbridge.errors import SettingsError
from sightbridge.models import build
from sightbridge.models.connectors import check_connector
from sightbridge.models.outline import check_qformer_outline, outline
from sightbridge.text.template import load_template
from sightbridge.training.preflight import check_settings

OPT = transformers.OPTConfig
T5: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "vocab_size": 32128}
CONFIGS: dict[str, Any] = {
    "Salesforce/blip2-opt-2.7b": transformers.Blip2Config(),
    "facebook/opt-2.7b": OPT(hidden_size=2560, num_hidden_layers=32, num_attention_heads=32),
    "facebook/opt-6.7b": OPT(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32),
    "bert-base-uncased": transformers.BertConfig(),
    "google/flan-t5-xl": transformers.T5Config(d_model=2048, **T5),
    "google/flan-t5-xxl": transformers.T5Config(d_model=4096, **T5),
}
"""What the hub says of the models that recipes name, as far as shapes go."""


ORDINARY = [name for name in recipe_names() if isinstance(read_recipe(name).recipe, Recipe)]


@pytest.mark.parametrize("name", ORDINARY)
def test_settings_fit_one_another(name: str) -> None:
    recipe = read_recipe(name).recipe
    assert isinstance(recipe, Recipe)
    check_settings(recipe)
    check_connector(recipe.model.connector)
    load_template(recipe.model.prompt.template).resolve(recipe.model.prompt.switches)
    for source in (*recipe.data.train, *recipe.data.validation):
        get_reader(source.format)


@pytest.mark.parametrize("name", [name for name in ORDINARY if name.startswith("blip2/")])
def test_blip2_recipes_have_the_shapes_of_the_real_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.AutoConfig, "from_pretrained", lambda source, **_: copy.deepcopy(CONFIGS[source]))
    recipe = read_recipe(name).recipe
    assert isinstance(recipe, Recipe)
    shape = outline(recipe.model)
    template = load_template(recipe.model.prompt.template)
    assert shape.tokens_per_image == 32
    assert shape.encoder_decoder == template.encoder_decoder == ("t5" in name)
    assert recipe.model.prompt.max_length is not None and recipe.model.prompt.max_length > 32
    language_model = recipe.model.language_model
    assert language_model.dtype == "bfloat16"  # FlanT5 overflows in float16
    assert language_model.override.get("dense_act_fn") == ("gelu" if "t5" in name else None)
    trained = recipe.training.parts.vision_tower.train == "full"
    assert recipe.model.vision_tower.dtype == ("float32" if trained else "float16")
    assert recipe.model.vision_tower.layers == [-1]


@pytest.mark.parametrize("name", ["blip2/stage1", "blip2/retrieval-coco", "blip2/paddlemix-stage1"])
def test_first_stage_recipes_have_the_shapes_of_the_real_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.AutoConfig, "from_pretrained", lambda source, **_: copy.deepcopy(CONFIGS[source]))
    recipe = read_recipe(name).recipe
    assert isinstance(recipe, QFormerRecipe)
    check_settings(recipe)
    options = check_qformer_outline(recipe.model)
    assert (options.num_queries, options.text_vocabulary, options.projection_size) == (32, 30523, 256)
    trained = recipe.training.parts.vision_tower.train == "full"
    assert recipe.model.vision_tower.dtype == ("float32" if trained else "float16")
    assert recipe.model.image.size == (364 if trained else 224)


def test_a_vision_tower_held_in_half_precision_cannot_train() -> None:
    recipe = read_recipe("blip2/caption-opt2.7b", ["model.vision_tower.dtype=float16"]).recipe
    assert isinstance(recipe, Recipe)
    with pytest.raises(SettingsError, match="small steps are lost") as caught:
        check_settings(recipe)
    assert caught.value.key == "model.vision_tower.dtype"


@pytest.mark.parametrize("path", sorted((RECIPES / "blip2").glob("*.yaml")), ids=lambda path: path.stem)
def test_blip2_recipes_say_what_they_are_and_where_their_numbers_come_from(path: Path) -> None:
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = " ".join(line.lstrip("# ") for line in head)
    assert text.startswith("BLIP-2")
    assert "Numbers: " in text or "the source of every number stands" in text
