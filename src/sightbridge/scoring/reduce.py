"""Log-probabilities of an answer's tokens to one number; see ``AnswerSettings.reduction``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sightbridge.scoring.settings import Reduction

OVER_TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "geomean": lambda logprobs: logprobs.mean().exp(),
    "product": lambda logprobs: logprobs.sum().exp(),
    "first_token": lambda logprobs: logprobs[0].exp(),
    "mean": lambda logprobs: logprobs.mean(),
    "sum": lambda logprobs: logprobs.sum(),
}
"""Name -> function of the log-probabilities (n,) of one answer."""


def reduce(reduction: Reduction, answers: list[Tensor]) -> Tensor:
    """One number from the log-probabilities (n,) of an answer; for ``yes_no`` from those of the two answers."""
    if reduction == "yes_no":
        answer, other = (logprobs.sum() for logprobs in answers)
        return torch.sigmoid(answer - other)  # p / (p + q) without leaving the logarithms
    (logprobs,) = answers
    return OVER_TOKENS[reduction](logprobs)
