"""Models of full size, by names and shapes alone: every original key is used, every weight of ours is filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llava_files import found_in, settings_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, CLIPVisionModel

from sightbridge.checkpoints.formats import Found
from sightbridge.checkpoints.sources.weights import Weights
from sightbridge.models.connectors import build_connector

Shapes = dict[str, tuple[int, ...]]
MM = {
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "image_aspect_ratio": "pad",
    "use_mm_proj": True,
}
VIP = MM | {"mm_hidden_size": 5120, "mm_vision_tower": "clip_4layers_336", "mm_patch_merge_type": "flat"}
VICUNA_7B = {
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llava_llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
VICUNA_13B = VICUNA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
}
LLAMA_3 = VICUNA_7B | {
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
PHI_3 = VICUNA_7B | {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "model_type": "llava_phi3",
    "original_max_position_embeddings": 4096,
    "resid_pdrop": 0.0,
    "sliding_window": 2047,
    "vocab_size": 32064,
}
FLAN_T5_XL = {
    "d_ff": 5120,
    "d_kv": 64,
    "d_model": 2048,
    "decoder_start_token_id": 0,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "clip_t5",
    "num_decoder_layers": 24,
    "num_heads": 32,
    "num_layers": 24,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}


def tower(prefix: str) -> Shapes:
    """CLIP ViT-L/14 at 336 pixels."""
    shapes: Shapes = {
        "embeddings.class_embedding": (1024,),
        "embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "embeddings.position_embedding.weight": (577, 1024),
    }
    shapes |= linear_or_norm("pre_layrnorm", 1024) | linear_or_norm("post_layernorm", 1024)
    for n in range(24):
        block = f"encoder.layers.{n}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= linear_or_norm(f"{block}.{norm}", 1024)
        for layer in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear_or_norm(f"{block}.self_attn.{layer}", 1024, 1024)
        shapes |= linear_or_norm(f"{block}.mlp.fc1", 4096, 1024) | linear_or_norm(f"{block}.mlp.fc2", 1024, 4096)
    return {prefix + name: shape for name, shape in shapes.items()}


def linear_or_norm(name: str, out: int, *channels: int) -> Shapes:
    return {f"{name}.weight": (out, *channels), f"{name}.bias": (out,)}


def decoder(config: dict[str, Any]) -> Shapes:
    """Llama's or Phi-3's, which joins some layers."""
    width, mlp, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    joined = {"qkv_proj": (width + 2 * kv, width), "gate_up_proj": (2 * mlp, width)}
    apart = {"q_proj": (width, width), "k_proj": (kv, width), "v_proj": (kv, width)}
    apart |= {"gate_proj": (mlp, width), "up_proj": (mlp, width)}
    layers = (joined if config["model_type"] == "llava_phi3" else apart) | {
        "o_proj": (width, width),
        "down_proj": (width, mlp),
    }
    shapes: Shapes = {"model.embed_tokens.weight": (words, width), "lm_head.weight": (words, width)}
    shapes["model.norm.weight"] = (width,)
    for n in range(config["num_hidden_layers"]):
        for name, shape in layers.items():
            group = "mlp" if name in ("gate_proj", "up_proj", "gate_up_proj", "down_proj") else "self_attn"
            shapes[f"model.layers.{n}.{group}.{name}.weight"] = shape
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{n}.{norm}.weight"] = (width,)
    return shapes


def t5(config: dict[str, Any]) -> Shapes:
    """T5 1.1's two stacks, its table under all names, its head."""
    width, mlp, inner, words = config["d_model"], config["d_ff"], 64 * config["num_heads"], config["vocab_size"]
    tables = ("shared", "embed_tokens", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    shapes: Shapes = {f"{name}.weight": (words, width) for name in tables}
    for stack, layers in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        shapes[f"{stack}.final_layer_norm.weight"] = (width,)
        shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, config["num_heads"])
        for n in range(config["num_layers"]):
            block = f"{stack}.block.{n}.layer"
            for k, layer in enumerate(layers):
                shapes |= {f"{block}.{k}.{layer}.{name}.weight": (inner, width) for name in "qkv"}
                shapes[f"{block}.{k}.{layer}.o.weight"] = (width, inner)
            dense = f"{block}.{len(layers)}.DenseReluDense"
            shapes |= {f"{dense}.{name}.weight": (mlp, width) for name in ("wi_0", "wi_1")}
            shapes[f"{dense}.wo.weight"] = (width, mlp)
            shapes |= {f"{block}.{k}.layer_norm.weight": (width,) for k in range(len(layers) + 1)}
    return shapes


def projector(prefix: str, channels: int, width: int) -> Shapes:
    """The MLP of LLaVA-1.5, or of ViP-LLaVA behind its LayerNorm."""
    inner = f"{prefix}final_linear." if channels == 5120 else prefix
    norm = linear_or_norm(f"{prefix}clip_layernorm", channels) if channels == 5120 else {}
    return norm | linear_or_norm(f"{inner}0", width, channels) | linear_or_norm(f"{inner}2", width, width)


RELEASED: dict[str, tuple[dict[str, Any], str]] = {
    "LLaVA-1.5 7B": (VICUNA_7B | MM | {"model_type": "llava"}, "vicuna_v1"),
    "LLaVA-1.5 13B": (VICUNA_13B | MM, "vicuna_v1"),
    "ViP-LLaVA 7B": (VICUNA_7B | VIP, "llava_v1"),
    "ViP-LLaVA 13B": (VICUNA_13B | VIP, "llava_v1"),
    "ViP-LLaVA Llama-3 8B": (LLAMA_3 | VIP, "llava_llama_3"),
    "LLaVA-1.5 Phi-3": (PHI_3 | MM, "llava_phi_3"),
    "ViP-LLaVA Phi-3": (PHI_3 | VIP, "llava_phi_3"),
    "CLIP-FlanT5 XL": (FLAN_T5_XL | MM, "t5_v1"),
    "CLIP-FlanT5 XXL": (
        FLAN_T5_XL | MM | {"d_ff": 10240, "d_model": 4096, "num_heads": 64},
        "t5_v1",
    ),
}


def released(name: str) -> tuple[Shapes, dict[str, Any], str]:
    """Names and shapes, configuration and prompt template of a released model, its tower in the file."""
    config, template = RELEASED[name]
    width, channels = config.get("d_model") or config["hidden_size"], config["mm_hidden_size"]
    if "d_model" in config:
        shapes = t5(config) | projector("mm_projector.", channels, width)
        return shapes | tower("vision_tower.vision_tower.vision_model."), config, template
    shapes = decoder(config) | projector("model.mm_projector.", channels, width)
    return shapes | tower("model.vision_tower.vision_tower.vision_model."), config, template


@pytest.mark.parametrize("name", RELEASED)
def test_every_key_is_used_and_every_weight_filled(name: str, tmp_path: Path) -> None:
    shapes, config, template = released(name)
    empty = {key: torch.empty(shape, dtype=torch.float16, device="meta") for key, shape in shapes.items()}
    found = found_in(Weights.of(empty, tmp_path, config))
    settings = settings_of(found)
    assert (settings.prompt.template, settings.image.fit) == (template, "pad")
    assert found.settings["vision_tower"]["config"]["image_size"] == 336
    ours = {key: info.shape for key, info in found.weights.infos.items()}
    wanted = names_of_ours(found)
    second_names = {
        key for key in wanted if key.endswith(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"))
    }
    assert ours == {key: shape for key, shape in wanted.items() if key not in second_names}
    dropped = [note for note in found.notes if note.startswith("left out")]
    assert len(dropped) == ("T5" in name)


def names_of_ours(found: Found) -> Shapes:
    """Names and shapes of our model of these settings, built without memory."""
    settings = settings_of(found)
    language = dict(found.settings["language_model"]["config"])
    vision: Any = AutoConfig.for_model(**found.settings["vision_tower"]["config"])
    with torch.device("meta"):
        parts: dict[str, Any] = {"vision_tower": CLIPVisionModel(vision)}
        auto: Any = AutoModelForSeq2SeqLM if language["is_encoder_decoder"] else AutoModelForCausalLM
        parts["language_model"] = auto.from_config(AutoConfig.for_model(**language))
        channels = vision.hidden_size * len(found.settings["vision_tower"]["layers"])
        width = language.get("d_model") or language["hidden_size"]
        parts["bridge"] = build_connector(settings.connector, channels, 576, width)
    return {
        f"{part}.{key}": tuple(weight.shape)
        for part, module in parts.items()
        for key, weight in module.state_dict().items()
    }
