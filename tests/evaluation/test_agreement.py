"""Agreement of scores with people: the reference's numbers, and a plain restatement of each measure."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightbridge.evaluation import agreement
from sightbridge.evaluation.agreement import (
    count_pairs,
    kendall_tau_b,
    kendall_tau_c,
    pairwise_accuracy,
    pairwise_accuracy_without_ties,
    pearson,
    roc_auc,
    weighted_pairwise_accuracy,
    weighted_pearson,
    weighted_roc_auc,
    weighted_tau_b,
)
from sightbridge.evaluation.metrics import Row, two_by_two

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "llava" / "scores" / "metrics.json").read_text())
"""Computed with t2v_metrics."""

grades = st.lists(st.tuples(st.integers(1, 4), st.integers(-6, 6).map(lambda n: n / 4)), min_size=2, max_size=12)


@pytest.mark.parametrize("case", range(len(GOLDEN["kendall"])))
def test_parity_with_t2v_metrics(case: int) -> None:
    row = GOLDEN["kendall"][case]
    people, scores = row["human"], row["metric"]
    accuracy, epsilon = pairwise_accuracy(people, scores)
    measured = {
        "pairwise_acc_tie_opt": accuracy,
        "tau23_tie_opt": 2 * accuracy - 1,
        "tau_b": kendall_tau_b(people, scores),
        "tau_c": kendall_tau_c(people, scores),
        "pairwise_acc_ignore_tie": pairwise_accuracy_without_ties(people, scores),
    }
    expected = {key: row[key][0] if isinstance(row[key], list) else row[key] for key in measured}
    if "pearson100" in row:
        measured["pearson100"], expected["pearson100"] = 100 * pearson(people, scores), row["pearson100"]
    difference = max(abs(measured[key] - expected[key]) for key in measured)
    print(f"parity agreement with t2v_metrics, case {case}: {difference:.1e}")
    assert difference < 1e-12
    assert epsilon == row["pairwise_acc_tie_opt"][1]


def test_parity_of_winoground_with_t2v_metrics() -> None:
    rows = [Row(str(number), scores=scores) for number, scores in enumerate(GOLDEN["winoground"]["scores"])]
    shares = {name: sum(values) / len(values) for name, values in two_by_two(rows).items()}
    assert shares == pytest.approx(GOLDEN["winoground"]["result"])


def plain_accuracy(items: list[tuple[float, float]]) -> tuple[float, float]:
    """The best share of pairs over every epsilon there may be, looked for one by one."""
    pairs = [(a[0] - b[0], a[1] - b[1]) for a, b in combinations(items, 2)]

    def share(epsilon: float) -> float:
        right = [
            (people == 0) if abs(gap) <= epsilon else (people * gap > 0)
            for people, gap in pairs
        ]  # fmt: skip
        return sum(right) / len(right)

    candidates = sorted({0.0, *(abs(gap) for _, gap in pairs)})
    best = max(map(share, candidates))
    return best, next(epsilon for epsilon in candidates if share(epsilon) == best)


@given(grades, st.sampled_from([(2,), (4, 8), (1 << 16,)]))
def test_the_sweep_finds_the_best_epsilon(items: list[tuple[float, float]], buckets: tuple[int, ...]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "BUCKETS", buckets)
        patch.setattr(agreement, "MAX_SORTED", 3)
        accuracy, epsilon = pairwise_accuracy(*zip(*items, strict=True))
    expected = plain_accuracy(items)
    assert (accuracy, epsilon) == (pytest.approx(expected[0]), expected[1])


@settings(max_examples=30)
@given(grades, st.randoms())
def test_measures_do_not_depend_on_order_or_scale(items: list[tuple[float, float]], rng) -> None:
    people, scores = map(list, zip(*items, strict=True))
    shuffled = rng.sample(items, len(items))
    again = [list(column) for column in zip(*shuffled, strict=True)]
    again[1] = [8 * score for score in again[1]]
    for measure in (kendall_tau_b, kendall_tau_c, pearson, pairwise_accuracy_without_ties):
        one, other = measure(people, scores), measure(*again)
        assert math.isclose(one, other, abs_tol=1e-9) or (math.isnan(one) and math.isnan(other))
        assert math.isnan(one) or -1 - 1e-9 <= one <= 1 + 1e-9
    assert pairwise_accuracy(*again)[0] == pytest.approx(pairwise_accuracy(people, scores)[0])
    assert roc_auc([grade > 2 for grade in people], scores) == pytest.approx(
        1 - roc_auc([grade <= 2 for grade in people], scores), nan_ok=True
    )


def test_parity_with_scipy_and_blocks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    people, scores = rng.integers(1, 6, 300), rng.normal(size=300).round(1)
    monkeypatch.setattr(agreement, "BLOCK", 64)
    theirs = [stats.kendalltau(people, scores, variant=v).statistic for v in "bc"] + [stats.pearsonr(people, scores)[0]]
    ours = [kendall_tau_b(people, scores), kendall_tau_c(people, scores), pearson(people, scores)]
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"parity tau-b, tau-c, Pearson with scipy: {difference:.1e}")
    assert difference < 1e-12
    counts = count_pairs(people, scores)
    tied = counts.tied_by_people + counts.tied_by_scores - counts.tied_by_both
    assert counts.concordant + counts.discordant + tied == counts.pairs == 300 * 299 // 2


def test_parity_of_auc_with_scikit_learn() -> None:
    theirs = pytest.importorskip("sklearn.metrics").roc_auc_score
    rng = np.random.default_rng(1)
    labels, scores = rng.random(200) < 0.3, rng.normal(size=200).round(1)
    print(f"parity AUC with scikit-learn: {abs(roc_auc(labels, scores) - theirs(labels, scores)):.1e}")
    assert roc_auc(labels, scores) == pytest.approx(theirs(labels, scores), abs=1e-12)


def test_nothing_to_compare() -> None:
    assert math.isnan(kendall_tau_b([1, 1], [1, 2])) and math.isnan(pearson([1, 2], [3, 3]))
    assert math.isnan(roc_auc([True, True], [1, 2]))
    assert pairwise_accuracy([1, 1, 1], [1, 2, 4]) == (1.0, 3.0)
    assert pairwise_accuracy([1, 1], [2, 2]) == (1.0, 0.0)
    tied = ([1, 1, 2], [3, 3, 4])
    assert pairwise_accuracy_without_ties(*tied) == pytest.approx(2 / 3)
    assert pairwise_accuracy_without_ties(*tied, compat=False) == 1.0


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=20),
    st.integers(0, 2),
)
def test_items_that_are_taken_several_times_count_so_often(items: list[tuple[int, int, int]], epsilon: int) -> None:
    given_, scores, taken = (list(column) for column in zip(*items, strict=True))
    weights = np.array([taken, [1] * len(items)], dtype=float)
    repeated = [n for n, times in enumerate(taken) for _ in range(times)]
    pairs = [(a, b) for a, b in combinations(repeated, 2) if a != b]
    signs = [(np.sign(given_[a] - given_[b]), np.sign(scores[a] - scores[b])) for a, b in pairs]
    spread = math.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))
    tau = sum(x * y for x, y in signs) / spread if spread else math.nan
    assert weighted_tau_b(given_, scores, weights) == pytest.approx([tau, kendall_tau_b(given_, scores)], nan_ok=True)
    right = [
        given_[a] == given_[b] if abs(scores[a] - scores[b]) <= epsilon else x == y
        for (a, b), (x, y) in zip(pairs, signs, strict=True)
    ]
    found = weighted_pairwise_accuracy(given_, scores, epsilon, weights)
    assert found[0] == pytest.approx(sum(right) / len(right) if right else math.nan, nan_ok=True)
    best, best_epsilon = pairwise_accuracy(given_, scores)
    assert weighted_pairwise_accuracy(given_, scores, best_epsilon, weights)[1] == pytest.approx(best)
    if sum(taken) > 1:
        labels = [grade > 1 for grade in given_]
        again = [labels[n] for n in repeated], [scores[n] for n in repeated]
        assert weighted_roc_auc(labels, scores, weights)[0] == pytest.approx(roc_auc(*again), nan_ok=True)
        people = [float(given_[n]) for n in repeated], [float(scores[n]) for n in repeated]
        assert weighted_pearson(given_, scores, weights)[0] == pytest.approx(pearson(*people), nan_ok=True, abs=1e-9)
