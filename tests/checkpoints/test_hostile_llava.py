"""Configurations and shapes that no honest file has: one clear message each, never another error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llava_files import found_in, original
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from sightbridge.checkpoints.formats.llava import CONFIG_TYPES, lora_settings
from sightbridge.checkpoints.formats.mm_projector import MM_PROJECTOR
from sightbridge.checkpoints.sources.weights import Weights
from sightbridge.errors import CheckpointError

ODD: list[Any] = [None, [], "x", -1, {"a": {}}]
OF_LANGUAGE_MODELS = ("hidden_size", "num_attention_heads", "rope_scaling", "d_model", "feed_forward_proj")
HF_KEYS = (
    "model_type",
    "text_config",
    "vision_config",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "projector_hidden_act",
)


def transformers_own() -> tuple[dict[str, Tensor], dict[str, Any]]:
    text = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 9}
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    vision |= {"image_size": 28, "patch_size": 14, "num_attention_heads": 2}
    text["num_attention_heads"] = 2
    config: Any = AutoConfig.for_model("llava", text_config=text, vision_config=vision, image_token_index=8)
    return AutoModelForImageTextToText.from_config(config).state_dict(), config.to_dict()


@pytest.mark.parametrize("name", ["vip_tiny", "clipt5_tiny", "transformers", "projector"])
def test_odd_values_in_a_configuration(name: str, tmp_path: Path) -> None:
    weights, config = (
        transformers_own() if name == "transformers" else original("vip_tiny" if name == "projector" else name)
    )
    if name == "projector":
        weights = {key: weight for key, weight in weights.items() if "mm_projector" in key}
    keys = HF_KEYS if name == "transformers" else (*CONFIG_TYPES, *OF_LANGUAGE_MODELS)
    outcomes = {"read": 0, "refused": 0}
    for key in keys:
        for odd in ODD:
            try:
                found_in(Weights.of(weights, tmp_path, config | {key: odd}))
                outcomes["read"] += 1
            except CheckpointError as error:
                assert str(error).startswith(str(tmp_path)), error
                outcomes["refused"] += 1
    print(f"{name}: {outcomes}")
    assert outcomes["refused"] > 10


@pytest.mark.parametrize("name", ["vip_tiny", "clipt5_tiny", "transformers"])
def test_weights_of_another_number_of_dimensions(name: str, tmp_path: Path) -> None:
    weights, config = transformers_own() if name == "transformers" else original(name)
    flat = {key: torch.empty(weight.numel(), 1, 1, device="meta") for key, weight in weights.items()}
    looked_at = ("embed", "shared", "class_", ".0.mlp.fc1.weight", "projector")
    for odd in (name for name in weights if any(part in name for part in looked_at)):
        try:
            found_in(Weights.of({**weights, odd: flat[odd]}, tmp_path, config))
        except CheckpointError as error:
            assert "dimension" in str(error)
    with pytest.raises(CheckpointError, match=r"expected . dimension"):
        found_in(Weights.of(flat, tmp_path, config))


@pytest.mark.parametrize("odd", ODD)
def test_odd_values_in_an_adapters_configuration(odd: Any, tmp_path: Path) -> None:
    plain: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    for key in ("target_modules", "bias", "rank_pattern", "use_dora"):
        try:
            lora_settings(plain | {key: odd}, tmp_path)
        except CheckpointError as error:
            assert str(error).startswith(str(tmp_path))


def test_a_language_model_that_is_not_known_is_no_projector() -> None:
    """A LLaVA on MPT has other names; reading its projector alone would leave the rest behind without a word."""
    projector = {"model.mm_projector.0.weight": torch.ones(2, 2), "model.mm_projector.0.bias": torch.ones(2)}
    assert MM_PROJECTOR.matches(Weights.of(projector))
    with_words = found_in(Weights.of(projector | {"model.embed_tokens.weight": torch.ones(2, 2)}))
    assert with_words.notes == ("left out: model.embed_tokens.weight: is no part of a connector",)
    assert not MM_PROJECTOR.matches(Weights.of(projector | {"transformer.blocks.0.norm_1.weight": torch.ones(2)}))
