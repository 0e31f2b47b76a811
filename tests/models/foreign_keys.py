"""Key names of LAVIS and original LLaVA files, mapped to ours, as far as the golden files need them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from sightbridge.models.vlm import VisionLanguageModel

Weights = dict[str, Tensor]


def load_exactly(model: VisionLanguageModel, weights: Weights, unused: str) -> None:
    """Load weights, insisting that all of the model's are there and that only ``unused`` ones are left over."""
    report = model.load_state_dict(weights, strict=False)
    assert report.missing_keys == []
    assert [key for key in report.unexpected_keys if not re.search(unused, key)] == []
    model.language_model.assert_heads_untied()


LAVIS = [
    (r"^visual_encoder\.cls_token$", "vision_tower.model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_tower.model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_tower.model.embeddings.patch_embedding."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_tower.model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_tower.model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.", r"vision_tower.model.encoder.layers.\1.self_attn."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_tower.model.encoder.layers.\1.mlp."),
    (r"^ln_vision\.", "connector.input_norm."),
    (r"^query_tokens$", "connector.queries"),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "connector.qformer.layernorm."),
    (
        r"^Qformer\.bert\.encoder\.layer\.(\d+)\.((?:cross)?attention)\.self\.",
        r"connector.qformer.encoder.layer.\1.\2.attention.",
    ),
    (r"^Qformer\.bert\.encoder\.", "connector.qformer.encoder."),
    (r"^(?:opt|t5)_proj\.", "connector.output."),
    (r"^(?:opt|t5)_model\.", "language_model.model."),
]


def from_lavis(state: Weights) -> Weights:
    """LAVIS stage-2 weights under our names; the key's zero bias of the vision tower's attention is written out."""
    weights = {rename(key, LAVIS): value for key, value in state.items()}
    for key in [key for key in weights if key.endswith("self_attn.q_bias")]:
        query, value = weights.pop(key), weights.pop(key.replace("q_bias", "v_bias"))
        weights[key.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    return weights


LLAVA = [
    (r"^(?:model\.)?vision_tower\.vision_tower\.vision_model\.", "vision_tower.model."),
    (r"^model\.mm_projector\.clip_layernorm\.", "connector.input_norm."),
    (r"^model\.mm_projector\.final_linear\.", "connector.layers."),
    (r"^mm_projector\.", "connector.layers."),
    (r"^(?=(model|lm_head|shared|encoder|decoder)\b)", "language_model.model."),
]


def from_llava(state: Weights) -> Weights:
    """Original ViP-LLaVA or CLIP-FlanT5 weights under our names."""
    return {rename(key, LLAVA): value for key, value in state.items()}


def rename(key: str, rules: list[tuple[str, str]]) -> str:
    """Apply the first rule that matches."""
    for pattern, replacement in rules:
        renamed, matches = re.subn(pattern, replacement, key)
        if matches:
            return renamed
    return key


def pick(config: dict[str, Any], *names: str) -> dict[str, Any]:
    """Some entries of a recorded configuration."""
    return {name: config[name] for name in names}
