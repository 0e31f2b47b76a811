"""Tiny models and batches for the tests of this room."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightbridge.batch import IGNORE_INDEX, Batch
from sightbridge.config.model import ModelSettings
from sightbridge.models.build import build_model
from sightbridge.models.vlm import VisionLanguageModel

VOCABULARY = 61
SIZE = 28
PATCHES = 4

_BLOCKS = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
_VISION = {**_BLOCKS, "image_size": SIZE, "patch_size": 14}
VISION: dict[str, dict[str, Any]] = {
    "blip_2_vision_model": {**_VISION, "intermediate_size": 64},
    "clip_vision_model": {**_VISION, "intermediate_size": 64},
    "siglip_vision_model": {**_VISION, "intermediate_size": 64},
    "dinov2": {**_VISION, "mlp_ratio": 2},
    "dinov2_with_registers": {**_VISION, "mlp_ratio": 2, "num_register_tokens": 3},
    "vit": {**_VISION, "intermediate_size": 64},
}
"""Options of tiny vision models by model type."""

_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GEMMA = {**_LLAMA, "head_dim": 6}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 6},
    "phi3": _LLAMA,
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 6},
    "granite": {**_LLAMA, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "cohere": {**_LLAMA, "logit_scale": 0.25},
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "word_embed_proj_dim": 20,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "dropout": 0.0,
    },
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 24, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.0},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 128},
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": {**_T5, "tie_word_embeddings": False},
    "mt5": _T5,
    "umt5": _T5,
    "bart": {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 128,
        "scale_embedding": True,
        "dropout": 0.0,
    },
}
LANGUAGE_MODELS = DECODERS | ENCODER_DECODERS
"""Options of tiny language models by model type."""

QFORMER = {"num_queries": 3, "hidden_size": 24, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}


def tiny_settings(
    language_model: str = "llama",
    vision: str = "clip_vision_model",
    connector: dict[str, Any] | None = None,
    **tower: Any,
) -> ModelSettings:
    """Settings of a tiny model of the named families with random weights."""
    return ModelSettings.model_validate(
        {
            "vision_tower": {"config": {"model_type": vision, **VISION[vision]}, **tower},
            "connector": connector or {"kind": "mlp"},
            "language_model": {"config": {"model_type": language_model, **LANGUAGE_MODELS[language_model]}},
            "prompt": {"template": "plain"},
        }
    )


def tiny_model(language_model: str = "llama", **options: Any) -> VisionLanguageModel:
    """Build a tiny model with random weights, in evaluation mode."""
    return build_model(tiny_settings(language_model, **options))


def make_batch(
    model: VisionLanguageModel,
    rows: list[tuple[int, int, int]],
    padding: str = "right",
    pictures: Tensor | None = None,
    width: int = 0,
) -> Batch:
    """Make a batch with seeded text; row r reads the same whatever stands beside it.

    Args:
        model: says how many slots a picture takes and what labels look like.
        rows: per row (seed, number of pictures, number of text tokens); pictures stand behind the first text token.
        padding: side of the padding.
        pictures: (N, 3, H, W); seeded ones by default.
        width: pad to at least this many columns.
    """
    tokens, size = model.tokens_per_image, model.vision_tower.image_size
    texts = [torch.randint(3, VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed)) for seed, _, n in rows]
    lengths = [n_pictures * tokens + n for _, n_pictures, n in rows]
    shape = (len(rows), max(*lengths, width))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    slots, labels = torch.zeros(shape, dtype=torch.bool), torch.full(shape, IGNORE_INDEX)
    for r, ((_, n_pictures, _), text, length) in enumerate(zip(rows, texts, lengths, strict=True)):
        start = 0 if padding == "right" else shape[1] - length
        after = start + 1 + n_pictures * tokens
        ids[r, start], ids[r, after : start + length] = text[0], text[1:]
        mask[r, start : start + length] = 1
        slots[r, start + 1 : after] = True
        labels[r, start + length - 3 : start + length] = text[-3:]
    if model.language_model.is_encoder_decoder:
        labels = torch.stack([text[-3:] for text in texts])
    if pictures is None:
        made = [torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) for seed, n, _ in rows]
        pictures = torch.cat(made)
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        image_slots=slots,
        images_per_row=torch.tensor([n_pictures for _, n_pictures, _ in rows]),
        pixel_values=pictures if len(pictures) else None,
        labels=labels,
        n_target_tokens=3 * len(rows),
        ids=tuple(f"record-{seed}" for seed, _, _ in rows),
    )


def widest_difference(first: Tensor, second: Tensor) -> float:
    """Largest absolute difference of two tensors of the same shape."""
    assert first.shape == second.shape, (first.shape, second.shape)
    return (first - second).abs().max().item()
