"""Which linear layers the blocks of each language-model family have, by the ``model_type`` of its configuration.

To teach LoRA another family, add a row: tests build a tiny model of every one and count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """Names of the linear layers in a block; a name that stands there twice is listed twice.

    Attributes:
        query_value: what the preset ``lora`` adapts: query and value, or the one layer that makes query, key and value.
        attention: all layers of an attention. A decoder block of an encoder-decoder has two attentions.
        feed_forward: layers of the feed-forward part.
    """

    query_value: tuple[str, ...]
    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]

    def adapted(self, preset: str) -> set[str]:
        """Names of the layers that a preset adapts."""
        return set(self.query_value if preset == "lora" else self.attention + self.feed_forward)

    def promise(self, preset: str, config: Any) -> int:
        """How many layers a preset adapts in a model of this configuration."""
        attentions = feed_forwards = config.num_hidden_layers
        if config.is_encoder_decoder:
            encoder, decoder = encoder_decoder_layers(config)
            attentions, feed_forwards = encoder + 2 * decoder, encoder + decoder
        names = self.adapted(preset)
        per_attention = sum(name in names for name in self.attention)
        per_feed_forward = sum(name in names for name in self.feed_forward)
        return attentions * per_attention + feed_forwards * per_feed_forward


def encoder_decoder_layers(config: Any) -> tuple[int, int]:
    """Numbers of blocks; T5 and BART name them differently."""
    if hasattr(config, "num_decoder_layers"):
        return config.num_layers, config.num_decoder_layers
    return config.encoder_layers, config.decoder_layers


_QV, _QKVO = ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")
_LLAMA = Family(_QV, _QKVO, ("gate_proj", "up_proj", "down_proj"))
_BLOOM = Family(("query_key_value",), ("query_key_value", "dense"), ("dense_h_to_4h", "dense_4h_to_h"))
_GPT2 = Family(("c_attn",), ("c_attn", "c_proj"), ("c_fc", "c_proj"))
_OPT = Family(_QV, ("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2"))
_T5_ATTENTION = ("q", "k", "v", "o")
_GATED_T5 = Family(("q", "v"), _T5_ATTENTION, ("wi_0", "wi_1", "wo"))
_PLAIN_T5 = Family(("q", "v"), _T5_ATTENTION, ("wi", "wo"))

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "granite": _LLAMA,
    "cohere": _LLAMA,
    "olmo2": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": Family(_QV, _QKVO, ("c_fc", "c_proj")),
    "phi": Family(_QV, ("q_proj", "k_proj", "v_proj", "dense"), ("fc1", "fc2")),
    "phi3": Family(("qkv_proj",), ("qkv_proj", "o_proj"), ("gate_up_proj", "down_proj")),
    "opt": _OPT,
    "bloom": _BLOOM,
    "falcon": _BLOOM,
    "gpt_neox": _BLOOM,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "mpt": Family(("Wqkv",), ("Wqkv", "out_proj"), ("up_proj", "down_proj")),
    "t5": _PLAIN_T5,
    "mt5": _GATED_T5,
    "umt5": _GATED_T5,
    "bart": _OPT,
    "mbart": _OPT,
}
"""mBLIP's presets are the rows of mt5, bloom and gpt_bigcode (its ``poly``), written with leaf names: the reference's
``".k"`` and ``".o"`` match nothing in today's peft, which would leave a third of mT0's layers without adapter."""


def find_family(config: Any) -> Family | None:
    """The row for a configuration; ``None`` if there is none."""
    if config.model_type in ("t5", "mt5", "umt5"):
        return _GATED_T5 if config.is_gated_act else _PLAIN_T5
    return FAMILIES.get(config.model_type)
