"""How well scores agree with what people said: rank correlations, pairwise accuracy with calibrated ties, AUC.

The pairwise measures look at every pair of items, fifty million of them for ten thousand items. They go through the
pairs in blocks, so memory does not grow with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sightbridge.evaluation.bootstrap import share

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]
Rows: TypeAlias = list[tuple[Floats, Floats]]
"""What people said and the scores; all rows have the same length."""

BLOCK = 256
"""Items of a block; each is compared with all items behind it."""
BUCKETS = (1 << 16, 1 << 20, 1 << 22)
"""Into how many intervals gaps between scores are sorted, more if fewer leave too many pairs undecided."""
MAX_SORTED = 4_000_000
"""Pairs that are sorted exactly, at the end."""
ROUNDING = 1e-12
"""Of a mean of squares; a variance below it is none."""


@dataclass(frozen=True)
class PairCounts:
    """Of all pairs of items: those that both put in the same order, in opposite orders, and those that people, the
    scores, or both hold for equal."""

    pairs: int
    concordant: int
    discordant: int
    tied_by_people: int
    tied_by_scores: int
    tied_by_both: int


def count_pairs(people: ArrayLike, scores: ArrayLike) -> PairCounts:
    """Count the pairs of two lists of the same length."""
    given, scored = _as_items(people, scores)
    concordant = ordered = 0
    for later, same, gaps in _blocks(given, scored):
        apart = gaps > 0
        concordant += int(np.count_nonzero(later & apart))
        ordered += int(np.count_nonzero(apart & ~same))
    return PairCounts(
        pairs=math.comb(len(given), 2),
        concordant=concordant,
        discordant=ordered - concordant,
        tied_by_people=_ties(given),
        tied_by_scores=_ties(scored),
        tied_by_both=_ties(given, scored),
    )


def kendall_tau_b(people: ArrayLike, scores: ArrayLike) -> float:
    """Kendall's tau-b (1945), -1 to 1; ``nan`` if one of the two holds all items for equal.

    Of a table of several rows, such as the pictures for each prompt, the mean over the rows that have one.
    """
    return _mean_of_rows(_tau_b, people, scores)


def kendall_tau_c(people: ArrayLike, scores: ArrayLike) -> float:
    """Stuart's tau-c (1953), for grades in few steps beside finer scores; rows as for ``kendall_tau_b``."""
    return _mean_of_rows(_tau_c, people, scores)


def pearson(people: ArrayLike, scores: ArrayLike) -> float:
    """Pearson's correlation, -1 to 1; ``nan`` if one of the two never changes."""
    given, scored = (values - values.mean() for values in _as_items(people, scores))
    spread = math.sqrt((given @ given) * (scored @ scored))
    return float(given @ scored) / spread if spread else math.nan


def pairwise_accuracy(people: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """Share of pairs that scores put in order, or hold for equal, as people do, and from which gap on scores differ.

    Scores that are at most ``epsilon`` apart count as equal; the epsilon, 0 or one of the gaps, is the smallest that
    gives the highest share (Deutsch et al., "Ties Matter", arXiv 2305.14323, and t2v_metrics). Of a table the mean
    over its rows, with one epsilon for all.

    Returns:
        The share, 0 to 1, and epsilon.
    """
    rows = _as_rows(people, scores)
    right = sum(count_pairs(*row).concordant for row in rows)
    gain, epsilon = _best_gain(rows)
    return (right + gain) / (len(rows) * math.comb(len(rows[0][0]), 2)), epsilon


def pairwise_accuracy_without_ties(people: ArrayLike, scores: ArrayLike, *, compat: bool = True) -> float:
    """Share of the pairs that people put in order which scores put in the same one; ``nan`` if there are none.

    Of a table the mean over its rows that have some. ``compat``: count pairs that people and scores both hold for
    equal as wrong ones, as t2v_metrics does; else they are left out like the others that people hold for equal.
    """

    def share(given: Floats, scored: Floats) -> float:
        counts = count_pairs(given, scored)
        ordered = counts.pairs - counts.tied_by_people + compat * counts.tied_by_both
        return counts.concordant / ordered if ordered else math.nan

    return _mean_of_rows(share, people, scores)


def roc_auc(labels: Sequence[bool] | ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: how probably a true item scores higher than a false one; equal scores count half.

    Mann and Whitney's U (1947) over the number of pairs. ``nan`` if all are true or none is.
    """
    return float(weighted_roc_auc(labels, scores, np.ones((1, len(np.asarray(scores)))))[0])


def weighted_roc_auc(labels: Sequence[bool] | ArrayLike, scores: ArrayLike, weights: Floats) -> Floats:
    """``roc_auc`` (D,) of items that are taken (D, items) times."""
    truth, values = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    assert truth.shape == values.shape and truth.ndim == 1, "a label for every score"
    order, starts = _runs(values)
    true, false = (np.add.reduceat((weights * chosen)[:, order], starts, axis=1) for chosen in (truth, ~truth))
    below = np.cumsum(false, axis=1) - false
    u = (true * (below + false / 2)).sum(axis=1)
    return share(u, true.sum(axis=1) * false.sum(axis=1), math.nan)


def weighted_pearson(people: ArrayLike, scores: ArrayLike, weights: Floats) -> Floats:
    """``pearson`` (D,) of items that are taken (D, items) times."""
    x, y = (values - values.mean() for values in _as_items(people, scores))
    sums = weights @ np.stack([x, y, x * x, y * y, x * y], axis=1) / weights.sum(axis=1, keepdims=True)
    mean_x, mean_y, square_x, square_y, product = sums.T
    spreads = [square - mean**2 for square, mean in ((square_x, mean_x), (square_y, mean_y))]
    # a draw of one item alone has a spread of rounding errors
    apart = (spreads[0] > ROUNDING * square_x) & (spreads[1] > ROUNDING * square_y)
    return share(product - mean_x * mean_y, np.sqrt(np.where(apart, spreads[0] * spreads[1], 0)), math.nan)


def weighted_tau_b(people: ArrayLike, scores: ArrayLike, weights: Floats) -> Floats:
    """``kendall_tau_b`` (D,) of items that are taken (D, items) times; two of one item are no pair."""
    given, scored = _as_items(people, scores)

    def order(gaps: Floats, steps: Ints) -> Floats:
        return np.sign(gaps) * np.sign(steps)

    pairs, tied_by_people, tied_by_scores = (_weighted_ties(key, weights) for key in (given * 0, given, scored))
    spread = np.sqrt((pairs - tied_by_people) * (pairs - tied_by_scores))
    return share(_sum_over_pairs(given, scored, order, weights), spread, math.nan)


def weighted_pairwise_accuracy(people: ArrayLike, scores: ArrayLike, epsilon: float, weights: Floats) -> Floats:
    """``pairwise_accuracy`` (D,) with a given epsilon of items that are taken (D, items) times; two of one item are no
    pair."""
    given, scored = _as_items(people, scores)

    def right(gaps: Floats, steps: Ints) -> Floats:
        return np.where(gaps > epsilon, steps > 0, steps == 0)

    return share(_sum_over_pairs(given, scored, right, weights), _weighted_ties(given * 0, weights), math.nan)


def _sum_over_pairs(given: Floats, scored: Floats, value: Callable[[Floats, Ints], Floats], weights: Floats) -> Floats:
    """Sum over all pairs, (D,), of the value of the gap between their scores, none below 0, and of the step from one
    grade to the other, by how often both are taken."""
    order = np.argsort(scored, kind="stable")
    scored, grades = scored[order], np.unique(given, return_inverse=True)[1][order].astype(np.int32)
    taken = np.ascontiguousarray(weights[:, order].T, dtype=np.float32)  # sums of a row stay exact below 2**24
    total = np.zeros(len(weights))
    for start in range(0, len(scored), BLOCK):
        stop = min(start + BLOCK, len(scored))
        values = value(scored[None, start:] - scored[start:stop, None], grades[None, start:] - grades[start:stop, None])
        behind = np.triu(values.astype(np.float32), k=1) @ taken[start:]
        total += (behind * taken[start:stop]).sum(axis=0, dtype=np.float64)
    return total


def _weighted_ties(key: Floats, weights: Floats) -> Floats:
    """Pairs of different items with one key, (D,), of items that are taken (D, items) times."""
    order, starts = _runs(key)
    sums, squares = (np.add.reduceat(taken[:, order], starts, axis=1) for taken in (weights, weights**2))
    return (sums**2 - squares).sum(axis=1) / 2


def _runs(values: Floats) -> tuple[Ints, Ints]:
    """The order of values, and where in it a new one begins."""
    order = np.argsort(values, kind="stable")
    return order, np.flatnonzero(np.append(True, np.diff(values[order]) > 0))


def _tau_b(given: Floats, scored: Floats) -> float:
    counts = count_pairs(given, scored)
    spread = math.sqrt((counts.pairs - counts.tied_by_people) * (counts.pairs - counts.tied_by_scores))
    return (counts.concordant - counts.discordant) / spread if spread else math.nan


def _tau_c(given: Floats, scored: Floats) -> float:
    counts, steps = count_pairs(given, scored), min(len(np.unique(given)), len(np.unique(scored)))
    if steps < 2:
        return math.nan
    return 2 * (counts.concordant - counts.discordant) / (len(given) ** 2 * (steps - 1) / steps)


def _decided(rows: Rows) -> Iterator[tuple[int, Floats]]:
    """Gaps between scores of the pairs that an epsilon decides: those that people hold for equal are won (1) once their
    gap is within it, those that people and scores put in the same order are lost (-1) then."""
    for given, scored in rows:
        for later, same, gaps in _blocks(given, scored):
            yield 1, gaps[same]
            yield -1, gaps[later & (gaps > 0)]


def _best_gain(rows: Rows) -> tuple[int, float]:
    """How many pairs the best epsilon wins, and this epsilon, the smallest of several.

    Gaps are counted in buckets first: only a bucket inside of which the sum may rise above what is reached at the
    bounds of all needs its gaps in order.
    """
    at_zero = sum(_ties(*row) for row in rows)
    widest = max(float(np.ptp(scored)) for _, scored in rows)
    if widest == 0:
        return at_zero, 0.0
    for buckets in BUCKETS:
        scale = buckets / widest
        won, lost = (np.zeros(buckets + 1, dtype=np.int64) for _ in range(2))
        for worth, gaps in _decided(rows):
            (won if worth > 0 else lost)[:] += np.bincount((gaps * scale).astype(np.int32), minlength=buckets + 1)
        ends = np.cumsum(won - lost)
        before = np.concatenate(([0], ends[:-1]))
        undecided = (before + won >= max(at_zero, ends.max())) & (won > 0)
        if (won + lost)[undecided].sum() <= MAX_SORTED:
            break
    return _best_within(rows, undecided, before, scale, at_zero)


def _best_within(rows: Rows, undecided: Bools, before: Ints, scale: float, at_zero: int) -> tuple[int, float]:
    """The best epsilon inside of the undecided buckets, ``before`` which so many pairs are won, or none at all."""
    kept_gaps, kept_worth = [np.empty(0)], [np.empty(0, dtype=np.int64)]
    for worth, found in _decided(rows):
        inside = found[undecided[(found * scale).astype(np.int32)]]
        kept_gaps.append(inside)
        kept_worth.append(np.full(len(inside), worth))
    gaps = np.concatenate(kept_gaps)
    if not len(gaps):
        return at_zero, 0.0
    order = np.argsort(gaps, kind="stable")
    gaps, sums = gaps[order], np.cumsum(np.concatenate(kept_worth)[order])
    place = (gaps * scale).astype(np.int32)
    starts = np.searchsorted(place, place)  # where each gap's bucket begins
    reached = before[place] + sums - np.where(starts > 0, sums[starts - 1], 0)
    ends = np.append(gaps[1:] != gaps[:-1], True)  # an epsilon takes all pairs of its gap
    best = int(np.argmax(reached[ends]))
    if reached[ends][best] <= at_zero:
        return at_zero, 0.0
    return int(reached[ends][best]), float(gaps[ends][best])


def _blocks(given: Floats, scored: Floats) -> Iterator[tuple[Bools, Bools, Floats]]:
    """Every pair once, in the order of scores: whether people put the one that scores higher higher too, whether they
    hold both for equal, and the gap between the scores."""
    order = np.argsort(scored, kind="stable")
    scored, grades = scored[order], np.unique(given, return_inverse=True)[1][order].astype(np.int32)
    for start in range(0, len(scored), BLOCK):
        stop = min(start + BLOCK, len(scored))
        corner = np.triu_indices(stop - start, k=1)
        one, other = start + corner[0], start + corner[1]
        yield grades[other] > grades[one], grades[other] == grades[one], scored[other] - scored[one]
        own, behind = grades[start:stop, None], grades[None, stop:]
        gaps = scored[None, stop:] - scored[start:stop, None]
        yield (behind > own).ravel(), (behind == own).ravel(), gaps.ravel()


def _ties(*columns: Floats) -> int:
    """Pairs of items that are equal in all columns."""
    counts = np.unique(np.stack(columns), axis=1, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _as_items(people: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    given, scored = np.asarray(people, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    assert given.shape == scored.shape and given.ndim == 1 and len(given) > 1, "two lists of the same items"
    assert np.isfinite(given).all() and np.isfinite(scored).all(), "numbers, all of them finite"
    return given, scored


def _as_rows(people: ArrayLike, scores: ArrayLike) -> Rows:
    given, scored = np.asarray(people, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if given.ndim == 1:
        return [_as_items(given, scored)]
    assert given.shape == scored.shape and given.ndim == 2, "two lists, or two tables, of the same items"
    return [_as_items(*row) for row in zip(given, scored, strict=True)]


def _mean_of_rows(measure: Callable[[Floats, Floats], float], people: ArrayLike, scores: ArrayLike) -> float:
    values = [value for row in _as_rows(people, scores) if not math.isnan(value := measure(*row))]
    return sum(values) / len(values) if values else math.nan
