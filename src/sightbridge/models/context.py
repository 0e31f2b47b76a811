"""How long a conversation a language model can take in, read from its configuration."""

from __future__ import annotations

from typing import Any

TRAINED_LENGTHS = {"bloom": 2048, "t5": 512, "mt5": 1024, "umt5": 1024}
"""Families whose configuration names no length, with the one they were trained on: BLOOM (arXiv 2211.05100, table 3),
T5 (arXiv 1910.10683, section 3.1.2), mT5 (arXiv 2010.11934, section 3.2), umT5 (arXiv 2304.09151). None of them has a
table of positions that ends there."""
USUAL_LENGTH = 2048
"""Taken for a family that is not known here."""
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
"""Under which keys configurations say it: Llama, Qwen, OPT and BART; GPT-2; older GPT; MPT; others."""


def context_length(config: Any) -> int:
    """Positions that a language model of configuration ``config`` takes: prompt and answer, or an encoder's row."""
    return _told(config) or TRAINED_LENGTHS.get(config.get_text_config().model_type, USUAL_LENGTH)


def position_limit(config: Any) -> int | None:
    """Positions beyond which a language model fails (OPT's table ends there) or reads nonsense (Llama).

    ``None`` for the families whose positions are differences alone: T5's buckets, BLOOM's ALiBi.
    """
    return None if config.get_text_config().model_type in TRAINED_LENGTHS else _told(config)


def is_rotary(config: Any) -> bool:
    """Whether positions are angles (Su et al., arXiv 2104.09864), which do not end, and not rows of a table."""
    return getattr(config.get_text_config(), "rope_parameters", None) is not None


def _told(config: Any) -> int | None:
    config = config.get_text_config()
    lengths = (getattr(config, key, None) for key in LENGTH_KEYS)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)
