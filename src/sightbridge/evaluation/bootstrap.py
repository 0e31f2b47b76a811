"""Intervals of measures by drawing the rows anew (Efron, "Bootstrap methods", 1979).

A measure of rows is a function of how often each of them is taken: once for its value, as often as it was drawn for
its interval. So a thousand draws are a few sums over numbers of the rows, and none measures a text a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Weighted: TypeAlias = Callable[[Floats], dict[str, Floats]]
"""Values by name, each (D,), of rows that are taken (D, rows) times; ``nan`` where so few rows say nothing."""

RESAMPLES = 1000
"""Draws; the interval holds the middle ``CONFIDENCE`` of them."""
CONFIDENCE = 0.95
BLOCK = 2**22
"""Values that are drawn at one time."""


@dataclass(frozen=True)
class Value:
    """A measured value, and the interval that repeated drawing of the rows puts it in; ``None`` if no draw can be
    measured."""

    value: float
    low: float | None = None
    high: float | None = None


def estimate(measure: Weighted, count: int, draws: int = RESAMPLES) -> dict[str, Value]:
    """The values of ``count`` rows, but those that say nothing, with the middle of as many draws, the same every time.

    Without draws there are no intervals.
    """
    values = {name: float(value[0]) for name, value in measure(np.ones((1, count))).items()}
    drawn = [measure(weights) for weights in _draws(count, draws)]
    found = {}
    for name, value in values.items():
        again = np.concatenate([one[name] for one in drawn]) if drawn else np.empty(0)
        again = again[~np.isnan(again)]
        if not np.isnan(value):
            found[name] = Value(value, *_middle(again)) if len(again) else Value(value)
    return found


def of_mean(values: Sequence[float]) -> Weighted:
    """The mean of a value of each row."""
    column = np.asarray(values, dtype=np.float64)
    return lambda weights: {"": weights @ column / weights.sum(axis=1)}


def of_sums(table: ArrayLike, finish: Callable[[Floats], dict[str, Floats]]) -> Weighted:
    """What ``finish`` makes of sums (D, K) over rows of K numbers each."""
    columns = np.asarray(table, dtype=np.float64)
    return lambda weights: finish(weights @ columns)


def share(part: Floats, whole: Floats, otherwise: float = 0.0) -> Floats:
    """``part / whole``, and ``otherwise`` where there is no whole."""
    return np.divide(part, whole, out=np.full(np.shape(whole), otherwise), where=whole > 0)


def _draws(count: int, draws: int) -> Iterator[Floats]:
    """How often each row is drawn, (some draws, rows) at a time."""
    rng, at_once = np.random.default_rng(0), max(1, BLOCK // count)
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        places = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(places.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def _middle(draws: Floats) -> tuple[float, float]:
    margin = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws, [margin, 100 - margin])
    return float(low), float(high)
