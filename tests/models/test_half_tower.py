"""A frozen tower held in half precision the way LAVIS holds it: linear layers only, and the sum in float32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from builders import SIZE, VISION, tiny_settings, widest_difference
from torch import nn

from sightbridge.checkpoints.weights import load_part, part_dtype, save_part
from sightbridge.config.model import VisionTowerSettings
from sightbridge.models.build import build_model, build_vision_tower
from sightbridge.models.vision_tower import VisionTower


def tower(family: str, dtype: str, layers: list[int]) -> VisionTower:
    config = {"model_type": family, **VISION[family]}
    if family != "siglip_vision_model":  # has no such key, and larger weights anyway
        config["initializer_range"] = 0.2
    torch.manual_seed(1)
    return build_vision_tower(VisionTowerSettings(config=config, layers=layers, dtype=dtype)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", VISION)
def test_only_linear_layers_are_cast(family: str, dtype: str) -> None:
    half, whole = tower(family, dtype, [-1]), tower(family, "float32", [-1])
    linear = {
        id(weight) for module in half.modules() if isinstance(module, nn.Linear) for weight in module.parameters()
    }
    for (name, weight), original in zip(half.named_parameters(), whole.parameters(), strict=True):
        wanted = getattr(torch, dtype) if id(weight) in linear else torch.float32
        assert weight.dtype == wanted, name
        assert torch.equal(weight, original.to(wanted)), name
    assert linear and part_dtype(half) == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", VISION)
def test_features_are_float32_and_near(family: str, dtype: str) -> None:
    pictures = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        features, expected = tower(family, dtype, [-1, 1])(pictures), tower(family, "float32", [-1, 1])(pictures)
    assert features.dtype == torch.float32
    error = widest_difference(features, expected) / expected.abs().max().item()
    assert 0 < error < (0.03 if dtype == "bfloat16" else 0.004)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parity_lavis_half_precision(dtype: torch.dtype) -> None:
    """LAVIS casts linear layers and the convolution and runs under autocast; everything else is in float32."""
    config = transformers.Blip2VisionConfig(initializer_range=0.2, **VISION["blip_2_vision_model"])
    torch.manual_seed(1)
    model: Any = transformers.Blip2VisionModel(config).eval()
    ours = VisionTower(copy.deepcopy(model), [-1]).hold_linear_layers_in(dtype)
    pictures = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=dtype):
            patches = model.embeddings.patch_embedding.to(dtype)(pictures).flatten(2).transpose(1, 2)
            states = torch.cat([model.embeddings.class_embedding.expand(2, -1, -1), patches], dim=1)
            states = states + model.embeddings.position_embedding
            for block in model.encoder.layers:
                block.self_attn.to(dtype)
                block.mlp.to(dtype)
                states = states + block.self_attn(block.layer_norm1(states))[0]
                states = states + block.mlp(block.layer_norm2(states))
        difference = widest_difference(ours(pictures), states)
    print(f"parity half tower {dtype}: {difference:.2e}")
    assert states.dtype == torch.float32
    assert difference <= 1e-6


def test_a_half_tower_works_inside_a_model_and_under_other_autocasts() -> None:
    settings = tiny_settings(vision="blip_2_vision_model", connector={"kind": "linear"}, dtype="bfloat16")
    model = build_model(settings)
    pictures = torch.randn(2, 3, SIZE, SIZE)
    features = model.encode_images(pictures)
    assert not features.requires_grad or features.dtype == torch.float32
    assert model.connect(features).shape[0] == 2
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(model.encode_images(pictures), features)


def test_a_stored_half_tower_comes_back(tmp_path) -> None:
    half, other = tower("clip_vision_model", "bfloat16", [-2]), tower("clip_vision_model", "bfloat16", [-2])
    nn.init.normal_(other.model.encoder.layers[0].mlp.fc1.weight)
    save_part(half, tmp_path / "tower.safetensors")
    load_part(other, tmp_path / "tower.safetensors")
    pictures = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(half(pictures), other(pictures))


def test_parity_a_tower_is_found_inside_a_whole_blip2(tmp_path) -> None:
    """The recipes name such a file; its tower is cast as it is read, and its Q-Former and language model left alone."""
    config = transformers.Blip2Config(
        vision_config={**VISION["blip_2_vision_model"], "initializer_range": 0.2},
        qformer_config={"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "encoder_hidden_size": 32},
        text_config={"model_type": "opt", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 1, "ffn_dim": 24},
        num_query_tokens=3,
    )
    whole = transformers.Blip2ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    source = {"source": str(tmp_path), "layers": [-1]}
    ours = build_vision_tower(VisionTowerSettings.model_validate(source)).eval()
    resized = build_vision_tower(VisionTowerSettings.model_validate(source | {"image_size": 56})).eval()
    half = build_vision_tower(VisionTowerSettings.model_validate(source | {"dtype": "float16"})).eval()
    pictures, large = torch.randn(2, 3, SIZE, SIZE), torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        states = whole.vision_model(pictures, output_hidden_states=True).hidden_states[-1]
        large_states = whole.vision_model(large, output_hidden_states=True, interpolate_pos_encoding=True)
        difference = widest_difference(ours(pictures), states)
        resized_difference = widest_difference(resized(large), large_states.hidden_states[-1])
        assert widest_difference(half(pictures), states) < 0.02
    print(f"parity tower of a whole BLIP-2: {difference:.2e}, resized: {resized_difference:.2e}")
    assert difference <= 1e-6 and resized_difference <= 1e-5
