"""What all rows of a picture begin with goes through a decoder-only language model once.

The rows of one picture differ only behind some point: "... <picture> Does this figure show "" is the same for every
text. Its keys and values are kept, and the rest of every row is run behind them. A layer joins both when it attends and
forgets them again, so rows cost no more memory than their own positions and one layer's keys and values.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sightbridge.models.language_model import LanguageModel, positions_from_mask
from sightbridge.text.encode import IGNORE_INDEX, Encoded

FAMILIES = ("bloom", "cohere", "gemma", "gpt2", "granite", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3")
"""Families of which tests show that a row gets the same scores behind a kept prefix as in one piece."""


class PrefixLayer(DynamicLayer):
    """One layer's keys and values of prefixes (N, heads, P, width), seen by rows that each pick one of the N."""

    _layer_type = None

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.rows = keys, values, rows
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the picked prefixes joined to what follows them, without keeping it."""
        assert self.keys is not None and self.values is not None, "set above"
        rows = self.rows.to(key_states.device)
        keys, values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def can_keep_prefix(language_model: LanguageModel) -> bool:
    """Whether a prefix can be kept: a decoder-only model of a known family that attends to all that came before."""
    config = language_model.config.get_text_config()
    return not language_model.is_encoder_decoder and config.model_type in FAMILIES


def common_prefix(rows: Sequence[Encoded]) -> int:
    """Positions that all rows begin with, or 0 if not all of their slots are among them.

    It ends before the position that predicts the first target of any row.
    """
    first_targets = [next(i for i, label in enumerate(row.labels) if i and label != IGNORE_INDEX) for row in rows]
    end = min(first_targets) - 1
    one = rows[0]
    for row in rows[1:]:
        differing = (
            i for i in range(end) if (row.input_ids[i], row.image_slots[i]) != (one.input_ids[i], one.image_slots[i])
        )
        end = next(differing, end)
    return 0 if any(any(row.image_slots[end:]) for row in rows) else max(end, 0)


def run_prefix(language_model: LanguageModel, embeddings: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Run prefixes (N, P, D) of equal length, and return the keys and values of every layer."""
    cache = DynamicCache()  # told no configuration, it keeps all positions, also under a sliding window
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
    _run(language_model, embeddings, mask, cache)
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[misc]


def continue_prefix(
    language_model: LanguageModel,
    prefix: list[tuple[Tensor, Tensor]],
    rows: Tensor,
    embeddings: Tensor,
    mask: Tensor,
) -> Tensor:
    """Run the rests of rows behind kept prefixes.

    Args:
        language_model: that made the prefixes.
        prefix: what ``run_prefix`` returned for N of them.
        rows: (B,) which of the N each row begins with.
        embeddings: (B, S, D) what follows it, padded on the right.
        mask: (B, S), 0 on padding.

    Returns:
        Last hidden states (B, S, W) of what follows.
    """
    cache = DynamicCache()
    cache.layers.extend(PrefixLayer(keys, values, rows) for keys, values in prefix)
    kept = prefix[0][0].shape[-2]
    return _run(language_model, embeddings, torch.cat([mask.new_ones(len(mask), kept), mask], dim=1), cache)


def _run(language_model: LanguageModel, embeddings: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    trunk = language_model.model.base_model
    inputs = {"inputs_embeds": embeddings, "attention_mask": mask, "use_cache": True, "past_key_values": cache}
    if "position_ids" in inspect.signature(trunk.forward).parameters:
        inputs["position_ids"] = positions_from_mask(mask)[:, -embeddings.shape[1] :]
    return trunk(**inputs).last_hidden_state
