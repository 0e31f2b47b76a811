"""Damaged files of BLIP-2's family: what they hold is said, or one clear error."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from blip2_files import GOLDEN, find
from torch import Tensor

from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.errors import CheckpointError

SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (3,), (2, 3), (0, 5), (3, 0, 2), (1, 2, 3), (1, 2, 3, 4), (1,) * 5)
STATES = ("opt", "t5", "stage 1", "tower", "paddle", "hf", "mblip", "minigpt4qwen")


@cache
def state(name: str) -> dict[str, Tensor]:
    if name == "paddle":
        with open_weights(GOLDEN / "paddle" / "tiny_blip2_full.pdparams") as weights:
            return {key: weights.read(key) for key in weights.infos}
    if name == "minigpt4qwen":
        return minigpt4qwen()
    recorded = {"opt": "stage2_opt_prompt", "stage 1": "stage1_loss_plain"}.get(name, "stage2_t5")
    lavis: dict[str, Tensor] = torch.load(GOLDEN / "lavis" / f"{recorded}.pt", weights_only=True)["state_dict"]
    if name == "tower":
        return {key.removeprefix("visual_encoder."): t for key, t in lavis.items() if key.startswith("visual_encoder.")}
    if name in ("hf", "mblip"):
        theirs = KeyMap.named("hf_blip2").to_theirs(find(Weights.of(lavis)).weights)
        kept = (key for key in theirs.infos if not key.startswith("language_model."))
        return {("model." if name == "mblip" else "") + key: theirs.read(key) for key in kept}
    return lavis


def minigpt4qwen() -> dict[str, Tensor]:
    block = "llm_model.transformer.h.0."
    shapes = {
        "llm_proj.weight": (8, 4),
        "llm_proj.bias": (8,),
        "llm_model.transformer.wte.weight": (9, 8),
        f"{block}ln_1.weight": (8,),
        f"{block}attn.c_attn.weight": (24, 8),
        f"{block}attn.c_attn.bias": (24,),
        f"{block}attn.c_proj.weight": (8, 8),
        f"{block}mlp.w1.weight": (6, 8),
        f"{block}mlp.w2.weight": (6, 8),
    }
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", STATES)
def test_any_damage_is_one_clear_error_or_none(name: str) -> None:
    draw = random.Random(name)
    whole = state(name)
    refused = 0
    for _ in range(60):
        damaged = dict(whole)
        for key in draw.sample(sorted(whole), 2):
            what = draw.random()
            if what < 0.3:
                del damaged[key]
            elif what < 0.9:
                damaged[key] = torch.zeros(draw.choice(SHAPES), dtype=draw.choice([torch.float32, torch.int64]))
            else:
                damaged[key.replace("0", "99999999999999999999")] = damaged.pop(key)
        try:
            find(Weights.of(damaged))
        except CheckpointError as error:
            refused += 1
            assert "memory" in str(error)
    print(f"{name}: {refused} of 60 damaged files refused when they were looked at")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("opt", "query_tokens"),
        ("t5", "visual_encoder.pos_embed"),
        ("t5", "t5_model.shared.weight"),
        ("tower", "cls_token"),
        ("paddle", "Qformer.bert.encoder.layer.0.intermediate_query.dense.weight"),
    ],
)
def test_a_wrong_number_of_dimensions_is_told(name: str, key: str) -> None:
    with pytest.raises(CheckpointError, match=r"(has the shape|shape)"):
        find(Weights.of(state(name) | {key: torch.zeros(1, 1, 1, 1)}))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"vision_config": [1]}, r"'vision_config' is \[1\], expected a group"),
        ({"qformer_config": {"num_attention_heads": "many"}}, "'num_attention_heads' is 'many', expected a number"),
        ({"qformer_config": {"hidden_act": "relu"}}, "activation is 'relu'"),
    ],
)
@pytest.mark.parametrize("name", ["paddle", "hf"])
def test_a_configuration_of_another_kind_is_told(name: str, config: dict[str, object], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        find(Weights.of(state(name), config=config))


def test_a_language_model_of_no_known_type_is_told() -> None:
    weights = state("hf") | {"language_model.lm_head.weight": torch.zeros(2, 2)}
    for family, told in ((["opt"], "type is"), ("nobody", "no model of type 'nobody'")):
        with pytest.raises(CheckpointError, match=told):
            find(Weights.of(weights, config={"text_config": {"model_type": family}}))
