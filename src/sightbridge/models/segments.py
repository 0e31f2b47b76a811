"""Packed rows in a language model: every record sees itself alone, and counts its positions from 0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sightbridge.errors import SettingsError

PACKABLE = (
    *("bloom", "cohere", "gemma", "gemma2", "gpt2", "granite", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3"),
    *("t5", "mt5", "umt5"),
)
"""Families of which tests show that packed rows give the same logits and gradients as rows of their own."""


def check_packing(config: Any, room: int) -> None:
    """Check that a language model of this configuration can be trained on rows packed into ``room`` positions.

    Raises:
        SettingsError: it cannot, or nobody has shown that it can; or its attention window is shorter than a row.
    """
    text = config.get_text_config()
    if text.model_type not in PACKABLE:
        why = (
            "counts positions through the whole row" if text.model_type == "bart" else "is not known to keep them apart"
        )
        raise SettingsError(
            f"records cannot be packed for language models of type '{text.model_type}', which {why}. Known to work: "
            f"{', '.join(PACKABLE)}. Set data.pack=false.",
            key="data.pack",
        )
    window = getattr(text, "sliding_window", None)
    if window is not None and window < room:
        raise SettingsError(
            f"packed rows of {room} positions (model.prompt.max_length) are longer than the {window} that the language "
            f"model's attention reaches back. Set model.prompt.max_length={window} or data.pack=false.",
            key="data.pack",
        )


def positions_from_segments(segments: Tensor) -> Tensor:
    """Count positions 0, 1, 2, ... anew in every segment of each row."""
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return places - (places * begins).cummax(dim=1).values


def block_mask(queries: Tensor, keys: Tensor, dtype: torch.dtype, causal: bool = False) -> Tensor:
    """Let every position see its own segment alone: 0 where it may look, the type's least number elsewhere.

    Padding may look anywhere: a row of the mask that forbids everything would make NaN, and nothing looks at padding.

    Args:
        queries: segments (B, Lq) of the positions that look.
        keys: segments (B, Lk) of those that are looked at.
        dtype: of the hidden states, to which eager attention adds the mask.
        causal: no position sees later ones; queries and keys are then the same positions.

    Returns:
        (B, 1, Lq, Lk); transformers uses a mask of four dimensions as it is.
    """
    queries, keys = queries.unsqueeze(2), keys.unsqueeze(1)
    sees = (queries == keys) | (queries == 0)
    if causal:
        sees = sees.tril()
    blocked = torch.finfo(dtype).min
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, blocked).unsqueeze(1)


@contextmanager
def alibi_of(trunk: Any, positions: Tensor) -> Iterator[None]:
    """Have BLOOM make its bias for keys at ``positions`` (B, L) while this lasts, whatever mask it is given.

    The bias is slope times position (Press et al., arXiv 2108.12409). Positions must start anew with every record: in
    theory their offset cancels out in the softmax, but in bfloat16 large ones would lose their last digits.
    """

    def build(mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        slopes = type(trunk).build_alibi_tensor(trunk, positions.new_ones(1, 2), heads, torch.float32)[:, 0, 1]
        return (slopes[:, None] * positions[:, None, :]).flatten(0, 1).unsqueeze(1).to(dtype)

    trunk.build_alibi_tensor = build
    try:
        yield
    finally:
        del trunk.build_alibi_tensor
