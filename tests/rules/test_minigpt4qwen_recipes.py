"""MiniGPT4Qwen's recipes have the shapes of the real parts, the reference's numbers, and say where these come from."""

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
from sightbridge.models.connectors.qformer import QFormerConnector, QFormerOptions
from sightbridge.models.outline import outline
from sightbridge.training.schedule import learning_rate

FILES = sorted((RECIPES / "minigpt4qwen").glob("*.yaml"))
CONFIGS: dict[str, Any] = {
    "Salesforce/blip2-flan-t5-xxl": transformers.Blip2Config(),
    "Qwen/Qwen1.5-7B-Chat": transformers.Qwen2Config(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32),
    "Qwen/Qwen1.5-14B-Chat": transformers.Qwen2Config(hidden_size=5120, num_hidden_layers=40, num_attention_heads=40),
}


def recipe_of(name: str) -> Recipe:
    recipe = read_recipe(f"minigpt4qwen/{name}").recipe
    assert isinstance(recipe, Recipe)
    return recipe


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_have_the_shapes_of_the_real_parts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.AutoConfig, "from_pretrained", lambda source, **_: copy.deepcopy(CONFIGS[source]))
    recipe = recipe_of(path.stem)
    shape = outline(recipe.model)
    assert (shape.tokens_per_image, shape.encoder_decoder) == (32, False)
    assert recipe.model.prompt.template == "minigpt4qwen"
    assert recipe.training.parts.connector.only == ["output"] and recipe.training.parts.vision_tower.train == "frozen"
    trains = recipe.training.parts.language_model.train
    assert trains == ("frozen" if "sft" not in path.stem else "lora" if "lora" in path.stem else "full")
    assert recipe.model.language_model.dtype == ("float32" if trains == "full" else "bfloat16")
    assert recipe.model.vision_tower.dtype == "float16" and recipe.model.vision_tower.layers == [-1]


def test_the_projection_has_three_million_weights() -> None:
    names = [
        n for n, _ in QFormerConnector(QFormerOptions.model_validate({"num_layers": 1}), 8, 4, 4096).named_modules()
    ]
    assert "output" in names
    size = 768 * 4096 + 4096
    print(f"projection to a width of 4096: {size:,} weights, {4 * size / 1e6:.1f} MB in float32")
    assert size == pytest.approx(3.15e6, rel=1e-3)


def test_steps_and_rates_of_the_reference() -> None:
    pretrain, sft = recipe_of("two-stage-pretrain"), recipe_of("two-stage-sft-video")
    assert pretrain.training.global_batch is not None and sft.training.global_batch is not None
    assert 558_128 // pretrain.training.global_batch == 2180  # 2181 with the last, which is short
    assert (156_000 + 100_000) / sft.training.global_batch == pytest.approx(2000, rel=0.01)
    assert learning_rate(66, 2181, pretrain.optim) == pytest.approx(1e-3)
    assert learning_rate(2180, 2181, pretrain.optim) < 1e-8
    assert max(learning_rate(step, 2005, sft.optim) for step in range(2005)) == pytest.approx(2e-5)
    large = recipe_of("align-14b")
    assert {learning_rate(step, 2940, large.optim) for step in (0, 100, 2939)} == {1e-4}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_say_what_they_are_and_where_their_numbers_come_from(path: Path) -> None:
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = " ".join(line.lstrip("# ") for line in head)
    assert text.startswith(("MiniGPT4Qwen", "MPP-Qwen")) and "Numbers: " in text and "Coobiw/MPP-LLaVA" in text
    twin = "align" if path.stem == "align-14b" else path.stem
    assert (RECIPES / "tiny" / f"minigpt4qwen-{twin}.yaml").is_file()
