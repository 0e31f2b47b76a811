"""MiniGPT4Qwen's and MPP-Qwen's files: what trained of a BLIP-2 with a chat model (Coobiw/MPP-LLaVA).

``checkpoint_N.pth`` and ``model.pth`` hold the projection, with LoRA the adapters too; ``unfreeze_llm_model.pth`` and
the layers that a pipeline saves hold the language model as well. Q-Former and tower stay frozen, so they are in LAVIS'
files that the training started from; a pipeline may have saved them all the same.

Qwen-1 is code to be downloaded, which is not run here. Its weights are those of a Qwen2 without grouped heads: the two
compute the same up to ``seq_length``, 2048 or 8192 tokens by release, from where Qwen-1 stretches its positions
(dynamic NTK) and sharpens its attention (log-n scaling).
"""

from __future__ import annotations

import re
from typing import Any

from sightbridge.checkpoints.formats.base import Format, Found
from sightbridge.checkpoints.formats.blip2_parts import eva_config, model_settings, parts_in_words, qformer_settings
from sightbridge.checkpoints.formats.llava_parts import (
    ADAPTER,
    LANGUAGE_MODEL,
    TOWER,
    count_layers,
    dtype_of,
    has,
    map_exactly,
    shape_of,
)
from sightbridge.checkpoints.formats.views import RenamedWeights
from sightbridge.checkpoints.sources.base import Weights

QWEN_1 = "llm_model.transformer."
LORA_MARK = ".lora_A."
LORA_ALPHA = 32
"""Of MiniGPT4Qwen's adapters (models/minigpt4qwen_models/minigpt4qwen.py, with dropout 0.05); no file says it."""
HEAD_WIDTH = 128
"""Width of every attention head of every Qwen-1 (``kv_channels``)."""


PIPELINE = {
    "visionpipe": "",
    "wtepipe.word_embeddings": "llm_model.transformer.wte",
    "rotary_emb": "llm_model.transformer.rotary_emb",
    "final_layernorm": "llm_model.transformer.ln_f",
    "lm_head": "llm_model.lm_head",
}
"""Modules of a pipeline's layers (minigpt4qwen_models/minigpt4qwen_pipe.py), and what the whole model calls them."""


def matches(weights: Weights) -> bool:
    """The projection to a chat model, without the Q-Former or with Qwen-1 or adapters beside it."""
    weights, _ = join_layers(weights)
    alone = "query_tokens" not in weights.infos
    return "llm_proj.weight" in weights.infos and (alone or has_chat_model(weights))


def has_chat_model(weights: Weights) -> bool:
    """Whether there are Qwen-1's weights or adapters of a chat model."""
    return any(name.startswith((QWEN_1, "llm_model.base_model.")) for name in weights.infos)


def read(weights: Weights) -> Found:
    """What the file holds."""
    weights, spacers = join_layers(weights)
    qwen = ["qwen1"] if any(name.startswith(QWEN_1) for name in weights.infos) else []
    mapped = map_exactly(weights, "lavis", "lavis_eva", "minigpt4qwen", *qwen)
    tower = eva_config(mapped) if has(mapped, TOWER) else None
    whole = "bridge.queries" in mapped.infos
    qformer = qformer_settings(mapped) if whole else {"kind": "qformer"}
    settings = model_settings(mapped, tower, qformer, image_size=224) | {"prompt": {"template": "minigpt4qwen"}}
    notes: tuple[str, ...] = (
        () if whole else ("the Q-Former was frozen and is not here: it is BLIP-2's, in LAVIS' file",)
    )
    if mapped.dropped:
        notes += (f"left out, no weights: {len(mapped.dropped)} buffers such as {mapped.dropped[0]}",)
    if spacers:
        notes += (f"left out, spacers between a pipeline's devices: {', '.join(spacers)}",)
    if has(mapped, ADAPTER):
        settings["lora"] = lora_settings(mapped)
        notes += (f"no file says the adapters' alpha: {LORA_ALPHA}, as in MiniGPT4Qwen's code",)
    if has(mapped, LANGUAGE_MODEL):
        settings["language_model"] = {"config": qwen_config(mapped), "dtype": dtype_of(mapped, LANGUAGE_MODEL)}
        notes += ("Qwen-1 is kept as a Qwen2 of the same weights: the same up to 2048 tokens (some releases: 8192)",)
    adapters = ", adapters" if has(mapped, ADAPTER) else ""
    what = f"MiniGPT4Qwen: {parts_in_words(mapped, tower)}{adapters}"
    return Found("minigpt4qwen", what, mapped, "generation", settings, notes=notes, partial=not whole)


def join_layers(weights: Weights) -> tuple[Weights, list[str]]:
    """The layers of a pipeline (``layer_05.layer.attn.c_attn.weight``) under the whole model's names, and its spacers.

    Block 0 of the language model is the first layer that has a block: spacers in front of it balance the memory.
    """
    numbered = {name: re.match(r"layer_(\d+)\.(.+)", name) for name in weights.infos}
    if not all(numbered.values()) or not numbered:
        return weights, []
    layers = {name: (int(match[1]), match[2]) for name, match in numbered.items() if match}
    first = min((number for number, inner in layers.values() if inner.startswith("layer.")), default=0)
    names: dict[str, str] = {}
    spacers = []
    for name, (number, inner) in layers.items():
        module = next((module for module in PIPELINE if inner.startswith(f"{module}.")), None)
        if inner.startswith("layer."):
            names[f"{QWEN_1}h.{number - first}.{inner.removeprefix('layer.')}"] = name
        elif module is not None:
            names[f"{PIPELINE[module]}{inner.removeprefix(module)}".removeprefix(".")] = name
        elif inner.startswith("occupy."):
            spacers.append(name)
        else:
            names[name] = name
    return RenamedWeights(weights, names), spacers


def lora_settings(mapped: Weights) -> dict[str, Any]:
    """Rank and layers of the adapters, which their names and shapes tell."""
    adapted = [name for name in mapped.infos if LORA_MARK in name]
    targets = {name.partition(LORA_MARK)[0].rpartition(".")[2] for name in adapted}
    rank = shape_of(mapped, adapted[0], 2)[0]
    return {"targets": sorted(targets), "r": rank, "alpha": LORA_ALPHA, "dropout": 0.05}


def qwen_config(mapped: Weights) -> dict[str, Any]:
    """Qwen-1's configuration (Qwen-7B-Chat, Qwen-14B-Chat) in the words of Qwen2, from its shapes."""
    layers = f"{LANGUAGE_MODEL}model.layers."
    vocabulary, width = shape_of(mapped, f"{LANGUAGE_MODEL}model.embed_tokens.weight", 2)
    mlp, _ = shape_of(mapped, f"{layers}0.mlp.gate_proj.weight", 2)
    heads = {} if width % HEAD_WIDTH else {"num_attention_heads": width // HEAD_WIDTH}
    return {
        "model_type": "qwen2",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": count_layers(mapped, layers),
        **heads,
        **({"num_key_value_heads": heads["num_attention_heads"]} if heads else {}),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    }


MINIGPT4QWEN = Format("minigpt4qwen", "MiniGPT4Qwen or MPP-Qwen .pth", matches, read)
