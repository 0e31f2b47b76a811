"""Metrics of rows: values by hand, and intervals that hold them."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightbridge.evaluation.metrics import CLEANERS, METRICS, Row, measure, preferred, relaxed, two_by_two


def answered(*pairs: tuple[str, str]) -> list[Row]:
    return [Row(str(number), said, (truth,)) for number, (said, truth) in enumerate(pairs)]


def test_accuracy_ignores_case_and_outer_spaces_alone() -> None:
    rows = answered((" Yes", "yes"), ("yes.", "yes"), ("no", "yes"), ("two", "Two "))
    assert measure("accuracy", rows)["accuracy"].value == 0.5


@pytest.mark.parametrize(
    ("said", "truth", "value"),
    [("yes it is", "yes", 1), ("it is yes", "yes", 1), ("no yes no", "yes", 0), ("", "yes", 0), ("Yes", "yes", 1)],
)
def test_relaxed_accuracy_looks_at_both_ends(said: str, truth: str, value: float) -> None:
    assert relaxed(said, [truth]) == value


def test_winograd_scores_by_hand_and_ties_are_wrong() -> None:
    both = Row("0", scores=((0.9, 0.1), (0.2, 0.8)))
    text_alone = Row("1", scores=((0.9, 0.8), (0.3, 0.4)))  # rows are pictures
    image_alone = Row("2", scores=((0.4, 0.5), (0.3, 0.9)))
    ties = Row("3", scores=((0.5, 0.5), (0.5, 0.5)))
    values = two_by_two([both, text_alone, image_alone, ties])
    assert values == {"text": [1, 1, 0, 0], "image": [1, 0, 1, 0], "group": [1, 0, 0, 0]}


def test_the_preferred_picture_scores_higher_and_a_tie_speaks_for_the_first() -> None:
    rows = [Row(str(n), scores=((a,), (b,)), meta={"label": label}) for n, (a, b, label) in enumerate(
        [(0.9, 0.1, 0), (0.9, 0.1, 1), (0.5, 0.5, 0), (0.5, 0.5, 1)]
    )]  # fmt: skip
    assert preferred(rows) == {"": [1, 0, 1, 0]}


def test_recall_counts_pictures_one_way_and_captions_the_other() -> None:
    rows = [
        Row("0", meta={"text_rank": 0, "image_ranks": [0, 7]}),
        Row("1", meta={"text_rank": 4, "image_ranks": [2]}),
    ]
    values = {name.removeprefix("recall/"): found.value for name, found in measure("recall", rows).items()}
    third = 1 / 3
    assert values == pytest.approx(
        {"text_r1": 0.5, "text_r5": 1, "text_r10": 1, "image_r1": third, "image_r5": 2 * third, "image_r10": 1}
    )


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_the_interval_holds_the_mean_and_is_the_same_every_time(hits: list[bool]) -> None:
    rows = answered(*(("yes" if hit else "no", "yes") for hit in hits))
    value = measure("accuracy", rows)["accuracy"]
    assert value == measure("accuracy", rows)["accuracy"]
    assert value.value == pytest.approx(sum(hits) / len(hits))
    assert value.low is not None and value.high is not None
    assert 0 <= value.low <= value.value + 1e-9 and value.value - 1e-9 <= value.high <= 1


def test_vqa_accuracy_counts_people() -> None:
    rows = [Row("0", "Two", ("2",) * 3 + ("3",) * 7), Row("1", "the dog", ("dog", "dog", "cat"))]
    assert measure("vqa_accuracy", rows)["vqa_accuracy"].value == pytest.approx((0.9 + 4 / 9) / 2)
    assert CLEANERS["vqa"]("A red car.") == "red car"


def test_pope_reads_answers_by_its_own_rule() -> None:
    rows = answered(("Yes.", "yes"), ("There is no dog", "yes"), ("No, it is not", "no"), ("A dog", "no"))
    values = {name: value.value for name, value in measure("pope", rows).items()}
    assert values == {f"pope/{name}": 0.5 for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")}


def test_every_metric_measures_in_one_way() -> None:
    assert all((metric.rows is None) != (metric.whole is None) for metric in METRICS.values())


WORDS = ["a", "the", "red", "dog", "cat", "sits", "on", "table", "street", "bus", "road"]


def drawn_rows(kind: str, count: int = 40) -> list[Row]:
    rng = random.Random(0)

    def row(n: int) -> Row:
        rating, label = rng.choice([1.0, 2.0, 3.0]), rng.random() < 0.4
        if kind == "rated":
            return Row(str(n), meta={"rating": rating, "label": int(label)}, scores=((rating + rng.gauss(0, 1.5),),))
        if kind == "ranked":
            return Row(
                str(n), meta={"text_rank": rng.randrange(15), "image_ranks": rng.choices(range(15), k=n % 4 + 1)}
            )
        truth = rng.choices(WORDS, k=8)
        said = [word if rng.random() < 0.8 else rng.choice(WORDS) for word in truth]
        return Row(str(n), " ".join(said), (" ".join(truth),), meta={"objects": ["dog", "bus"]})

    return [row(n) for n in range(count)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("bleu_1", "caption"), ("bleu_4", "caption"), ("rouge_l", "caption"), ("chair", "caption")),
        *(("recall", "ranked"), ("pearson", "rated"), ("kendall", "rated"), ("auc", "rated")),
    ],
)
def test_draws_are_measured_as_rows_that_are_really_drawn(name: str, kind: str) -> None:
    rows = drawn_rows(kind)
    places = np.random.default_rng(1).integers(len(rows), size=(5, len(rows)))
    weights = np.stack([np.bincount(own, minlength=len(rows)) for own in places]).astype(float)
    whole = METRICS[name].whole
    assert whole is not None
    drawn = whole(rows)(weights)
    for draw, own in enumerate(places):
        by_hand = measure(name, [rows[place] for place in own], intervals=False)
        found = {f"{name}/{which}" if which else name: values[draw] for which, values in drawn.items()}
        assert found == pytest.approx({which: value.value for which, value in by_hand.items()}, abs=1e-9)
    for value in measure(name, rows).values():
        assert value.low is not None and value.high is not None and value.low < value.value < value.high


def test_intervals_of_many_rows_take_seconds() -> None:
    rng = np.random.default_rng(0)
    people = rng.integers(3, 16, 10_000) / 3
    pairs = zip(people, people + rng.normal(scale=2, size=len(people)), strict=True)
    rows = [Row(str(n), meta={"rating": rating}, scores=((score,),)) for n, (rating, score) in enumerate(pairs)]
    start = time.process_time()
    value = measure("kendall", rows)["kendall"]
    assert time.process_time() - start < 30, "every draw by itself would take minutes"
    assert value.low is not None and value.high is not None and 0.01 < value.high - value.low < 0.03


def test_intervals_of_measures_of_all_rows_together() -> None:
    said = ["yes", "no", "yes", "no", "yes", "no"] * 10
    truths = ["yes", "no", "no", "no", "yes", "yes"] * 10
    rows = [Row(str(n), one, (truth,)) for n, (one, truth) in enumerate(zip(said, truths, strict=True))]
    values = measure("pope", rows)
    assert values == measure("pope", rows)
    for value in values.values():
        assert value.low is not None and value.high is not None and value.low < value.value < value.high
    captions = [Row(str(n), f"a red bus {n}", (f"a red bus {n}", "a bus")) for n in range(8)]
    cider = measure("cider", captions)["cider"]
    assert cider.low is not None and cider.low <= cider.value <= cider.high  # type: ignore[operator]
