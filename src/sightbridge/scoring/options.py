"""Choosing among candidate answers: each question about a picture has its own, and the likeliest wins.

As BLIP-2's and mBLIP's rank classification does: the log-likelihood of every candidate, summed over its tokens or
(``reduction="mean"``) averaged, which does not favour short ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sightbridge.errors import DataError, SettingsError
from sightbridge.scoring.kinds import Ask, TokenScore
from sightbridge.scoring.pictures import find_pictures
from sightbridge.scoring.scorer import Scorer, check_texts


@dataclass(frozen=True)
class Ranking:
    """The candidates of one question: their scores, the softmax of these, their tokens, and the best of them."""

    options: list[str]
    scores: list[float]
    probabilities: list[float]
    tokens: list[tuple[TokenScore, ...]]

    @property
    def best(self) -> str:
        """The option with the highest score; the first of equals. If the picture was skipped, an empty text."""
        first = max(range(len(self.options)), key=lambda i: self.scores[i])
        return self.options[first] if self.scores[first] == self.scores[first] else ""


def rank_options(scorer: Scorer, samples: Sequence[Mapping[str, Any]]) -> list[Ranking]:
    """Rank the candidates of every sample.

    Args:
        scorer: of a generation model; ``load_scorer(MODEL, "options")`` sums log-likelihoods.
        samples: rows ``{"image": ..., "question": ..., "options": [...]}``, any number of options each.

    Raises:
        SettingsError: the scorer's kind asks nothing.
        DataError: naming the sample that lacks something.
        ImageError: naming the first picture that cannot be opened.
    """
    if scorer.backend.kind != "options":
        raise SettingsError(f"options are ranked by a scorer of kind 'options', not '{scorer.backend.kind}'")
    rows, pictures, texts = [], [], []
    for number, sample in enumerate(samples, start=1):
        if missing := [name for name in ("image", "question", "options") if name not in sample]:
            raise DataError(f"sample {number}: has no {missing[0]}; expected image, question and options")
        if isinstance(sample["options"], str) or not sample["options"]:
            raise DataError(f"sample {number}: expected a list of options, got {sample['options']!r}")
        found = find_pictures([sample["image"]], scorer.frames)
        if len(found) != 1:
            raise DataError(f"sample {number}: is about {len(found)} pictures; expected one")
        rows += [(len(pictures), Ask(sample["question"], option)) for option in check_texts(list(sample["options"]))]
        pictures += found
        texts += sample["options"]
    scores = scorer.run(pictures, rows, texts)
    rankings, start = [], 0
    for sample in samples:
        end = start + len(sample["options"])
        values = scores.values[start:end]
        rankings.append(
            Ranking(
                list(sample["options"]), values.tolist(), torch.softmax(values, 0).tolist(), scores.tokens[start:end]
            )
        )
        start = end
    return rankings
