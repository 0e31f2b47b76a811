"""PaddleMIX's BLIP-2: ``model_state.pdparams`` of a whole model, of the Q-Former or of the tower.

``config.json`` beside it says sizes in PaddleMIX' words. Some of them it does not mean: the number of queries is always
that of ``query_tokens``, and a vocabulary grows by one with every save; both are taken from the weights.
"""

from __future__ import annotations

import re
from typing import Any

from sightbridge.checkpoints.formats.base import Format, Found
from sightbridge.checkpoints.formats.blip2_parts import (
    config_group,
    config_numbers,
    eva_config,
    kind_of,
    model_settings,
    opt_config,
    parts_in_words,
    prompt_settings,
    stated_qformer,
    t5_config,
)
from sightbridge.checkpoints.formats.llava_parts import BRIDGE, LANGUAGE_MODEL, TOWER, has, map_exactly
from sightbridge.checkpoints.formats.views import RenamedWeights
from sightbridge.checkpoints.key_map import MappedWeights
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.errors import CheckpointError

TOWER_NAMES = ("cls_token", "pos_embed", "patch_embed.", "blocks.")
"""Beginnings of the tower's names, which files of the tower alone have without ``visual_encoder.``."""
QFORMER_NAMES = (
    "query_tokens",
    "ln_vision.",
    "bert.",
    "cls.",
    "language_projection.",
    "vision_proj.",
    "text_proj.",
    "itm_head.",
)
"""The same of the Q-Former's and ``Qformer.``."""
T5_SIZES = (
    *("d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "relative_attention_num_buckets"),
    *("relative_attention_max_distance", "feed_forward_proj", "layer_norm_epsilon", "dropout_rate"),
    *("pad_token_id", "eos_token_id", "decoder_start_token_id", "vocab_size"),
)
"""Keys that PaddleNLP and transformers give the same meaning."""


def matches(weights: Weights) -> bool:
    """The norm of the features inside the Q-Former, or a tower whose matrices are (in, out)."""
    names = {_full_name(name) for name in weights.infos}
    if "Qformer.query_tokens" in names and any(name.startswith("Qformer.bert.encoder.") for name in names):
        # Beside bare names, LAVIS' have a prefix and mBLIP's are transformers'.
        return "query_tokens" not in weights.infos or "bert.embeddings.LayerNorm.weight" in weights.infos
    fused = next((weights.infos[n].shape for n in weights.infos if n.endswith("blocks.0.attn.qkv.weight")), (1, 1))
    return "visual_encoder.blocks.0.attn.qkv.bias" in names and len(fused) == 2 and fused[1] == 3 * fused[0]


def read(weights: Weights) -> Found:
    """What the file holds; ``config.json`` may be missing."""
    config = weights.config or {}
    full = RenamedWeights(weights, {_full_name(name): name for name in weights.infos})
    family = _language_family(full)
    mapped = map_exactly(full, "paddle", *([f"paddle_{family}"] if family else []))
    vision = config_group(weights, "vision_config")
    numbers = config_numbers(weights, vision, {"num_attention_heads": "num_heads", "layer_norm_eps": "epsilon"})
    tower = eva_config(mapped, **numbers) if has(mapped, TOWER) else None
    qformer = stated_qformer(mapped) if has(mapped, BRIDGE) else None
    size = config_numbers(weights, vision, {"size": "img_size"}).get("size", 224)
    settings = model_settings(mapped, tower, qformer, size)
    kind = kind_of(mapped)
    if qformer and kind == "generation":
        settings |= _language_settings(mapped, config, family)
    stage = {"qformer": "stage 1", "generation": "stage 2"}[kind] if qformer else "the tower"
    what = f"PaddleMIX BLIP-2, {stage}: {parts_in_words(mapped, tower)}"
    return Found("paddle", what, mapped, kind, settings, notes=_notes(mapped))


def _full_name(name: str) -> str:
    """The name in a file of the whole model."""
    if name.startswith(TOWER_NAMES):
        return f"visual_encoder.{name}"
    return f"Qformer.{name}" if name.startswith(QFORMER_NAMES) else name


def _language_family(weights: Weights) -> str | None:
    """``opt``, ``t5`` or ``None`` if there is no language model; raises ``CheckpointError`` for another."""
    found = [name for name in weights.infos if name.startswith("language_model.")]
    if not found:
        return None
    for family in ("opt", "t5"):
        if any(name.startswith(f"language_model.{family}.") for name in found):
            return family
    raise CheckpointError(
        f"{weights.path}: holds a language model that is neither OPT nor T5 ('{found[0]}'). Leave it out, and name its "
        "Hugging Face release with --language-model."
    )


def _language_settings(mapped: Weights, config: dict[str, Any], family: str | None) -> dict[str, Any]:
    """Prompt and language model; without one in the file, the configuration tells the family."""
    text_config = config.get("text_config")
    if family is None and text_config is not None:
        decoder_only = config.get("use_decoder_only_language_model", True)
        family = ("opt" if "opt" in str(text_config).lower() else None) if decoder_only else "t5"
    if family is None:
        return {}
    found: dict[str, Any] = {"prompt": prompt_settings(family)}
    if not has(mapped, LANGUAGE_MODEL):
        # PaddleNLP's name of an OPT is the hub's.
        named = family == "opt" and isinstance(text_config, str) and re.fullmatch(r"facebook/opt-[\w.]+", text_config)
        return found | ({"language_model": {"source": text_config}} if named else {})
    if family == "opt":
        return found | {"language_model": {"config": opt_config(mapped)}}
    stated = text_config if isinstance(text_config, dict) else {}
    language = t5_config(mapped, "gelu_new") | {key: stated[key] for key in T5_SIZES if stated.get(key) is not None}
    return found | {"language_model": {"config": language}}


def _notes(mapped: MappedWeights) -> tuple[str, ...]:
    reasons = {
        "position_ids": "no weights",
        "token_type_embeddings.weight": "PaddleMIX never adds them",
        "decoder.weight": "PaddleMIX' captioning head uses the word embeddings",
    }
    return tuple(
        f"left out, {why}: {name}" for end, why in reasons.items() for name in mapped.dropped if name.endswith(end)
    )


PADDLE = Format("paddle", "PaddleMIX .pdparams (BLIP-2)", matches, read)
