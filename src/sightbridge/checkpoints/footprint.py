"""How much memory a model takes, before a weight of it is read: from its manifest, file sizes and configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from sightbridge.checkpoints.describe import describe
from sightbridge.checkpoints.folder import FIRST_STAGE
from sightbridge.checkpoints.manifest import Manifest
from sightbridge.config.model import LanguageModelSettings
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.build import find_config
from sightbridge.models.context import context_length
from sightbridge.models.language_model import T5_FAMILY, wants_own_head

Quantize = Literal["8bit", "nf4", "none"]
BYTES_PER_WEIGHT = {"8bit": 1.0, "nf4": 0.5 + 4 / 64}
"""Of a quantised layer: LLM.int8() (arXiv 2208.07339); nf4, four bits and a float32 scale for 64 weights (QLoRA, arXiv
2305.14314)."""
LONGEST_CONVERSATION = 4096
"""Tokens whose keys and values are counted, if the model takes in more."""
LIBRARIES = {"cpu": 0.4 * 2**30, "cuda": 0.5 * 2**30}
"""torch, transformers and what they load, measured after importing them; a GPU's context and workspaces."""
LOAD_IN: dict[str, Quantize] = {"--load-in 8bit": "8bit", "--load-in 4bit": "nf4"}


@dataclass(frozen=True)
class Memory:
    """Bytes of memory of a kind, ``"cpu"`` or ``"cuda"``: free now, and all there is (with swap)."""

    device: str
    free: float
    total: float


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model takes.

    ``parts``: weights by part. ``stored``: the largest part whose weights are in the model folder, which is held twice
    for a moment while it is loaded. ``linear``: weights of the language model that can be quantised, ``linear_bytes``
    what they take in full. ``cache``: keys and values of ``tokens`` positions.
    """

    parts: dict[str, float]
    stored: float
    linear: int
    linear_bytes: float
    cache: float
    tokens: int
    quantize: Quantize = "none"

    def kept(self, quantize: Quantize | None = None) -> float:
        """Bytes of weights and of a long conversation, once loaded."""
        kind = quantize or self.quantize
        saved = self.linear_bytes - self.linear * BYTES_PER_WEIGHT[kind] if kind != "none" else 0
        return sum(self.parts.values()) - saved + self.cache

    def needed(self, device: str, quantize: Quantize | None = None) -> float:
        """Bytes needed at the worst moment. Loading happens on the CPU and in full; quantising comes after it."""
        libraries = LIBRARIES[device]
        if device != "cpu":
            return self.kept(quantize) + libraries
        return max(self.kept(quantize), sum(self.parts.values()) + self.stored) + libraries


def footprint(
    folder: str | Path, sources: Mapping[str, str] | None = None, quantize: Quantize | None = None
) -> Footprint:
    """Estimate what a model folder takes once it is loaded; the arguments are those of ``load_model``.

    What the model computes with, beside a conversation's keys and values, is not in it: megabytes for one question.

    Raises ``CheckpointError`` if it is no model folder, or one of BLIP-2's first stage.
    """
    found = describe(folder)
    manifest = found.manifest
    if not isinstance(manifest, Manifest):
        raise CheckpointError(f"{folder}: {FIRST_STAGE}")
    parts: dict[str, float] = {
        part.name: part.bytes or part.parameters * getattr(torch, part.dtype).itemsize for part in found.parts
    }
    settings = manifest.settings.language_model
    if sources and "language_model" in sources:
        settings = settings.model_copy(update={"source": sources["language_model"]})
    language_model = next(part for part in found.parts if part.name == "language_model")
    weight = getattr(torch, language_model.dtype).itemsize
    linear, cache, tokens = 0, 0.0, 0
    config = _find(settings)
    if config is not None:
        linear = max(language_model.parameters - _never_quantized(config), 0)
        tokens = min(context_length(config), LONGEST_CONVERSATION)
        cache = tokens * _cache_per_token(config) * weight
    return Footprint(
        parts,
        stored=max((part.bytes or 0 for part in found.parts), default=0),
        linear=linear,
        linear_bytes=linear * weight,
        cache=cache,
        tokens=tokens,
        quantize=quantize or settings.quantize or "none",
    )


def free_memory(device: str) -> Memory:
    """Look how much memory ``"cpu"`` or ``"cuda"`` (the current GPU) has."""
    if device == "cpu":
        memory = psutil.virtual_memory()
        return Memory(device, memory.available, memory.total + psutil.swap_memory().total)
    free, total = torch.cuda.mem_get_info()
    return Memory(device, free, total)


def tell_problem(needs: Footprint, memory: Memory, spread: bool = False) -> str | None:
    """One sentence on a model that does not fit, with what would fit; ``None`` if it does.

    ``spread``: over all devices, so that no GPU has to hold all of it.

    Raises ``SettingsError`` if it cannot fit even if all other programs were ended.
    """
    where = {"cpu": "of the CPU's memory", "cuda": "of the GPU's memory"}[memory.device]
    if spread or needs.needed(memory.device) <= memory.free:
        return None
    ways = [
        f"{option} ({show_bytes(needs.needed(memory.device, kind))})"
        for option, kind in LOAD_IN.items()
        if needs.quantize == "none" and needs.linear and needs.needed(memory.device, kind) <= memory.free
    ]
    if memory.device != "cpu":
        ways += ["--device-map auto"]
        ways += [f"--cpu ({show_bytes(needs.needed('cpu'))})"] * (needs.needed("cpu") <= free_memory("cpu").free)
    fits = f"What would fit: {', '.join(ways)}." if ways else "Take a smaller model, or end other programs."
    found = f"the model takes about {show_bytes(needs.needed(memory.device))}"
    if needs.needed(memory.device) - needs.cache > memory.total:
        raise SettingsError(f"{found}, but there are only {show_bytes(memory.total)} {where} in all. {fits}")
    return f"{found}, but {show_bytes(memory.free)} {where} are free. {fits}"


def show_bytes(size: float) -> str:
    """GiB, or MiB of less than one."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def _find(settings: LanguageModelSettings) -> Any | None:
    """The language model's configuration, if it is here: loading will say so if it is not."""
    try:
        return find_config(settings, "language_model")
    except CheckpointError:
        return None


def _never_quantized(config: Any) -> int:
    """Weights of the table of embeddings, of a head apart, and of T5's second feed-forward layers."""
    text = config.get_text_config()
    tables = 1 if config.tie_word_embeddings and not wants_own_head(config) else 2
    weights = tables * text.vocab_size * text.hidden_size
    if config.model_type in T5_FAMILY:
        weights += config.d_model * config.d_ff * (config.num_layers + config.num_decoder_layers)
    return weights


def _cache_per_token(config: Any) -> int:
    """Keys and values of one position in all layers; an encoder-decoder keeps those of the encoder's row as well."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = (
        getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or text.hidden_size // text.num_attention_heads
    )
    layers = getattr(text, "num_decoder_layers", None) or text.num_hidden_layers
    return 2 * layers * heads * size * (2 if config.is_encoder_decoder else 1)
