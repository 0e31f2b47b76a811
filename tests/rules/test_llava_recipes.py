"""Recipes of LLaVA-1.5 and ViP-LLaVA have the shapes of the real parts, the numbers of the scripts, and say whence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from sightbridge.config.catalogue import RECIPES, find_launcher
from sightbridge.config.load import read_recipe
from sightbridge.config.recipe import Recipe
from sightbridge.models import build
from sightbridge.models.connectors import build_connector
from sightbridge.models.lora_families import FAMILIES
from sightbridge.models.outline import outline, outline_tower
from sightbridge.text.template import load_template
from sightbridge.training.schedule import learning_rate, warmup_length

FILES = sorted([*(RECIPES / "llava").glob("*.yaml"), *(RECIPES / "vip_llava").glob("*.yaml")])
NAMES = [path.relative_to(RECIPES).with_suffix("").as_posix() for path in FILES]
LLAMA = transformers.LlamaConfig
CONFIGS: dict[str, Any] = {
    "openai/clip-vit-large-patch14-336": transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    ),
    "lmsys/vicuna-7b-v1.5": LLAMA(intermediate_size=11008),
    "lmsys/vicuna-13b-v1.5": LLAMA(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8),
    "microsoft/Phi-3-mini-4k-instruct": transformers.Phi3Config(),
}
"""What the hub says of the models that recipes name, as far as shapes go."""
PROJECTORS = {  # weights of LayerNorm and MLP, for a language model of this width
    ("llava", 4096): 20_979_712,
    ("llava", 5120): 31_467_520,
    ("llava", 3072): 12_589_056,
    ("vip_llava", 4096): 37_767_168,
    ("vip_llava", 5120): 52_449_280,
    ("vip_llava", 3072): 25_182_208,
}
ADAPTED = {"lmsys/vicuna-7b-v1.5": 32 * 7}


class Script(NamedTuple):
    """A row of the reference's table: what trains, batch of a GPU, rows of a step, rate, saves."""

    trains: str
    batch: int
    step: int
    lr: float
    save: int


SCRIPTS = {
    "pretrain": Script("frozen", 32, 256, 1e-3, 24000),
    "finetune": Script("full", 16, 128, 2e-5, 50000),
    "finetune-lora": Script("lora", 16, 128, 2e-4, 50000),
    "stage2": Script("full", 16, 128, 2e-5, 50000),
    "stage3": Script("full", 16, 128, 2e-7, 50000),
    "stage2-lora": Script("lora", 16, 128, 2e-4, 50000),
    "task": Script("full", 16, 128, 2e-5, 50000),
    "task-lora": Script("lora", 16, 128, 2e-4, 50000),
}
SMALLER_BATCH = {"llava/finetune-llama3", *(f"vip_llava/stage{n}-{lm}" for n in (2, 3) for lm in ("llama3", "phi3"))}
"""These scripts take 8 rows and accumulate twice."""
LANGUAGE_MODELS = {
    "": "lmsys/vicuna-7b-v1.5",
    "13b": "lmsys/vicuna-13b-v1.5",
    "llama3": "meta-llama/Meta-Llama-3-8B-Instruct",
    "phi3": "microsoft/Phi-3-mini-4k-instruct",
}


def recipe_of(name: str) -> Recipe:
    recipe = read_recipe(name).recipe
    assert isinstance(recipe, Recipe)
    return recipe


def parts_of(name: str) -> tuple[str, str, str]:
    """``vip_llava/stage2-13b`` is of family vip_llava, script stage2, language model 13b."""
    family, stem = name.split("/")
    script, _, which = stem.rpartition("-")
    return (family, script, which) if which in LANGUAGE_MODELS and script else (family, stem, "")


@pytest.mark.parametrize("name", NAMES)
def test_they_have_the_shapes_of_the_real_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.AutoConfig, "from_pretrained", lambda source, **_: copy.deepcopy(CONFIGS[source]))
    family, script, which = parts_of(name)
    model = recipe_of(name).model
    shape = outline(model)
    assert (shape.tokens_per_image, shape.encoder_decoder) == (576, False)
    assert model.language_model.source == LANGUAGE_MODELS[which]
    tower = outline_tower(model.vision_tower, model.image)
    assert tower.layers == ([23, 20, 17, 14, 6] if family == "vip_llava" else [23])
    assert (tower.channels, tower.positions) == (5120 if family == "vip_llava" else 1024, 576)
    width = CONFIGS[LANGUAGE_MODELS[which]].hidden_size
    with torch.device("meta"), no_init_weights():
        bridge = build_connector(model.connector, tower.channels, tower.positions, width)
    assert sum(weight.numel() for weight in bridge.parameters()) == PROJECTORS[family, width]
    if SCRIPTS[script].trains == "lora":
        assert model.lora is not None
        assert (model.lora.preset, model.lora.r, model.lora.alpha, model.lora.dropout) == ("lora_all", 128, 256, 0.05)
        config = CONFIGS[LANGUAGE_MODELS[which]]
        assert FAMILIES[config.model_type].promise("lora_all", config) == ADAPTED[LANGUAGE_MODELS[which]]
    else:
        assert model.lora is None


@pytest.mark.parametrize("name", NAMES)
def test_they_have_the_scripts_numbers(name: str) -> None:
    family, script, which = parts_of(name)
    recipe, numbers = recipe_of(name), SCRIPTS[script]
    model, training, optim = recipe.model, recipe.training, recipe.optim
    assert training.batch_size == (8 if name in SMALLER_BATCH else numbers.batch)
    assert (training.global_batch, training.epochs, training.precision) == (numbers.step, 1, "bf16")
    assert (training.save_every, training.keep_checkpoints, training.log_every) == (numbers.save, 1, 1)
    assert (optim.lr, optim.min_lr, optim.warmup_lr, optim.warmup_ratio) == (numbers.lr, 0, 0, 0.03)
    assert (optim.kind, optim.betas, optim.eps, optim.clip_norm) == ("adamw", (0.9, 0.999), 1e-8, 1.0)
    assert (optim.schedule, optim.weight_decay) == ("cosine", 0)
    parts = training.parts
    assert (parts.vision_tower.train, parts.connector.train) == ("frozen", "full")
    assert parts.language_model.train == numbers.trains and parts.language_model.gradient_checkpointing
    assert parts.connector.lr == (2e-5 if numbers.trains == "lora" else None), "mm_projector_lr"
    assert model.language_model.dtype == ("float32" if numbers.trains == "full" else "bfloat16")
    first = script == "pretrain"
    chat = {"llama3": "llava_llama_3", "phi3": "llava_phi_3"}.get(which, "llava_v1" if "vip" in name else "vicuna_v1")
    assert (model.prompt.template, model.prompt.max_length) == ("plain" if first else chat, 2048)
    switches = {name for name, on in load_template("plain").resolve(model.prompt.switches).items() if on}
    assert switches == {"image_first", "drop_leading_assistant"} | ({"drop_user_text"} if first else set())
    assert (model.image.size, model.image.fit, model.image.augment) == (336, "crop" if first else "pad", "none")
    assert recipe.data.workers == 4
    (source,) = recipe.data.train
    assert source.format == ("vip_llava" if family == "vip_llava" and not first else "llava")
    by_modality = family == "llava" and script.startswith("finetune") and which != "llama3"
    assert recipe.data.group_by_length == ("llava" if by_modality else False)


def test_steps_and_rates_of_the_scripts() -> None:
    """558,128 captions and 665,298 conversations: the last step of the reference is short."""
    first, second = recipe_of("llava/pretrain"), recipe_of("llava/finetune-lora")
    assert -(-558_128 // (first.training.global_batch or 1)) == 2181 and warmup_length(first.optim, 2181) == 66
    assert -(-665_298 // (second.training.global_batch or 1)) == 5198
    assert learning_rate(66, 2181, first.optim) == pytest.approx(1e-3)
    assert learning_rate(2180, 2181, first.optim) < 1e-8
    bridge = second.training.parts.connector.lr
    assert learning_rate(156, 5198, second.optim, bridge) == pytest.approx(2e-5)


def test_the_language_models_have_the_sizes_that_the_page_of_memory_reckons_with() -> None:
    sizes = {}
    for source in LANGUAGE_MODELS.values():
        with torch.device("meta"), no_init_weights():
            sizes[source] = sum(w.numel() for w in AutoModelForCausalLM.from_config(CONFIGS[source]).parameters())
    print("weights of the language models:", {name: f"{size / 1e9:.2f} billion" for name, size in sizes.items()})
    assert [round(size / 1e8) for size in sizes.values()] == [67, 130, 80, 38]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_they_say_what_they_are_and_where_their_numbers_come_from(path: Path) -> None:
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = " ".join(line.lstrip("# ") for line in head)
    assert text.startswith(("LLaVA-1.5", "ViP-LLaVA"))
    assert "Numbers: " in text or "the source of every number stands" in text
    for launcher in ("ddp", "fsdp2", "zero2", "zero3"):
        find_launcher(launcher)
    twin = parts_of(path.relative_to(RECIPES).with_suffix("").as_posix())
    assert (RECIPES / "tiny" / f"{twin[0].replace('_', '-')}-{twin[1]}.yaml").is_file()
