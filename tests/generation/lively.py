"""Tiny random models whose answers are worth comparing."""

from __future__ import annotations

from typing import Any

import torch
from builders import make_batch, tiny_model
from torch import Tensor

from sightbridge.batch import Batch
from sightbridge.config.generation import GenerationSettings
from sightbridge.generation.generate import generate
from sightbridge.models.vlm import VisionLanguageModel

PAD = 0
ROWS = [(1, 1, 6), (2, 2, 9), (3, 0, 12), (4, 1, 4)]
"""Per row (seed, number of pictures, number of text tokens)."""


def lively_model(family: str, seed: int = 0, **options: Any) -> VisionLanguageModel:
    """A model that does not repeat one token for ever: its blocks outweigh its embeddings."""
    model = tiny_model(family, **options)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.language_model.model.named_parameters():
        if weight.dim() == 2:
            scale = 0.2 if "embed" in name or "shared" in name else 0.7
            weight.data.normal_(0, scale, generator=generator)
    return model


def run(model: VisionLanguageModel, batch: Batch, eos: int = -1, **settings: object) -> list[list[int]]:
    """Generate; every row is cut behind its EOS."""
    chosen = GenerationSettings.model_validate({"max_new_tokens": 10, **settings})
    ids = generate(model, batch, chosen, eos_ids=[eos] if eos >= 0 else [], pad_id=PAD)
    return trim(ids, eos)


def trim(ids: Tensor, eos: int) -> list[list[int]]:
    """Rows up to their EOS, which stays; only padding may follow it."""
    rows = []
    for row in ids.tolist():
        end = row.index(eos) + 1 if eos in row else len(row)
        assert set(row[end:]) <= {PAD}
        rows.append(row[:end])
    return rows


def batch_of(model: VisionLanguageModel, rows: list[tuple[int, int, int]] = ROWS, padding: str = "left") -> Batch:
    """Prompts with one, two and no pictures."""
    return make_batch(model, rows, padding=padding)


def find_eos(model: VisionLanguageModel, batch: Batch) -> int:
    """A token that, taken for EOS, ends rows early and at as many different places as possible."""
    rows = run(model, batch)

    def ends(token: int) -> list[int]:
        return [row.index(token) if token in row else len(row) for row in rows]

    candidates = sorted({token for row in rows for token in row[2:]} - {PAD})
    return max(candidates, key=lambda token: (len(set(ends(token))), sum(ends(token))))
