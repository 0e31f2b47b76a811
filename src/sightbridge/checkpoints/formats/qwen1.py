"""Qwen-1 from Hugging Face (Qwen-7B-Chat, Qwen-14B-Chat), the language model of MiniGPT4Qwen, as it was published.

transformers has no class for it; its own code is to be downloaded and run, which is not done here. Its weights are
those of a Qwen2, see ``minigpt4qwen``. Its tokenizer is such code, too; Qwen1.5's has the same tokens.
"""

from __future__ import annotations

from typing import Any

from sightbridge.checkpoints.formats.base import Format, Found
from sightbridge.checkpoints.formats.llava_parts import LANGUAGE_MODEL, dtype_of, map_exactly
from sightbridge.checkpoints.formats.minigpt4qwen import qwen_config
from sightbridge.checkpoints.formats.views import RenamedWeights
from sightbridge.checkpoints.sources.base import Weights

INSIDE = "llm_model."
"""What MiniGPT4Qwen puts in front of its names, and so the key map."""
OPTIONS = {
    "num_attention_heads": ("num_attention_heads", "num_key_value_heads"),
    "layer_norm_epsilon": ("rms_norm_eps",),
    "rotary_emb_base": ("rope_theta",),
    "seq_length": ("max_position_embeddings",),
}
"""What its configuration says, and Qwen2's names for it."""


def matches(weights: Weights) -> bool:
    """Qwen-1's feed-forward, whose gate is ``w2``, at the outermost level."""
    return {"transformer.wte.weight", "transformer.h.0.mlp.w2.weight"} <= weights.infos.keys()


def read(weights: Weights) -> Found:
    """What the folder holds: a language model and nothing else."""
    mapped = map_exactly(RenamedWeights(weights, {f"{INSIDE}{name}": name for name in weights.infos}), "qwen1")
    told: dict[str, Any] = {
        new: value
        for old, names in OPTIONS.items()
        if (value := (weights.config or {}).get(old)) is not None
        for new in names
    }
    config = qwen_config(mapped) | told
    notes = (
        "Qwen-1 is kept as a Qwen2 of the same weights: the same up to its training length",
        "its tokenizer is code to be downloaded; Qwen1.5's has the same tokens: --tokenizer Qwen/Qwen1.5-7B-Chat",
    )
    settings = {"language_model": {"config": config, "dtype": dtype_of(mapped, LANGUAGE_MODEL)}}
    return Found("qwen1", "Qwen-1, a language model alone", mapped, "generation", settings, notes=notes)


QWEN1 = Format("qwen1", "Qwen-1 (Qwen-7B-Chat), a language model alone", matches, read)
