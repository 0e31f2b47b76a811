"""What answers are measured by: values of single rows that are averaged, or values of all rows together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import numpy as np

from sightbridge.config.task import TaskSettings
from sightbridge.errors import SettingsError, nearest
from sightbridge.evaluation.agreement import (
    pairwise_accuracy,
    weighted_pairwise_accuracy,
    weighted_pearson,
    weighted_roc_auc,
    weighted_tau_b,
)
from sightbridge.evaluation.bootstrap import RESAMPLES, Floats, Value, Weighted, estimate, of_mean, of_sums, share
from sightbridge.evaluation.captions import MAX_N, bleu_counts, bleu_of_counts, cider_of_each, rouge_l_of_each
from sightbridge.evaluation.hallucination import (
    ObjectFinder,
    chair_counts,
    chair_of_counts,
    pope_counts,
    pope_of_counts,
    read_objects,
    yes_or_no,
)
from sightbridge.evaluation.meteor import check_meteor, meteor
from sightbridge.evaluation.tokenize import caption_tokens
from sightbridge.evaluation.vqa import normalise, soft_accuracy, vqa_accuracy

T = TypeVar("T")

FIRST = (1, 5, 10)
"""How many of a ranking recall looks at."""
FEW = 200
"""Draws of a measure that takes long: of pairs of rows, or in a program of its own."""


@dataclass(frozen=True)
class Row:
    """One record answered: what the model said after post-processing, and the true answers (none: not measured).

    Or pictures and texts compared: their ``scores``, a row per picture with one for every text.
    """

    id: str
    said: str = ""
    truths: tuple[str, ...] = ()
    language: str = "en"
    meta: dict[str, Any] = field(default_factory=dict)
    scores: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Needs:
    """What rows a metric can measure: in words, and how they are told."""

    what: str
    fits: Callable[[Row], bool]


def _is_answer(row: Row) -> bool:
    return not row.scores and "text_rank" not in row.meta


def _shape(row: Row) -> tuple[int, int]:
    """So many pictures, with so many texts, were scored."""
    return len(row.scores), len(row.scores[0]) if row.scores else 0


ANSWERS = Needs("answers", _is_answer)
YES_OR_NO = Needs(
    "answers to questions whose true answer is yes or no", lambda row: row.truths[:1] in (("yes",), ("no",))
)
OBJECTS = Needs("captions of pictures whose objects are known", lambda row: "objects" in row.meta and _is_answer(row))
FOURS = Needs("scores of two pictures with two texts", lambda row: _shape(row) == (2, 2))
CHOICES = Needs(
    "scores of two pictures with one text, one of them preferred",
    lambda row: _shape(row) == (2, 1) and row.meta.get("label") in (0, 1),
)
LABELS = Needs(
    "scores of one picture with one text, and whether they fit",
    lambda row: _shape(row) == (1, 1) and row.meta.get("label") in (0, 1),
)
RATINGS = Needs(
    "scores of one picture with one text, and people's rating",
    lambda row: _shape(row) == (1, 1) and isinstance(row.meta.get("rating"), int | float),
)
RANKS = Needs("ranks of retrieval", lambda row: "text_rank" in row.meta)


@dataclass(frozen=True)
class Metric:
    """``rows``: values that are averaged, usually one for every row. ``whole``: values of all rows together, such as
    precision and recall, by how often each is taken. Both by name, which is "" where there is one alone.

    ``percent``: whether the values are shares, shown in percent. ``needs``: what it is a measure of. ``draws``: of the
    rows, for the intervals. ``wrong``: which single rows are wrong ones, if the metric knows.
    """

    what: str
    rows: Callable[[Sequence[Row]], Mapping[str, Sequence[float]]] | None = None
    whole: Callable[[Sequence[Row]], Weighted] | None = None
    percent: bool = True
    needs: Needs = ANSWERS
    draws: int = RESAMPLES
    wrong: Callable[[Row], bool] | None = None


def measure(name: str, rows: Sequence[Row], *, intervals: bool = True) -> dict[str, Value]:
    """Measure rows by the metric called ``name``; a metric of several values names each ``name/which``.

    The interval is a percentile bootstrap over rows, its draws the same every time. Of too few rows, or of one kind
    alone, many a measure says nothing, and is left out. Raises ``SettingsError`` for rows that it is no measure of.
    """
    check_rows(name, rows)
    metric = METRICS[name]
    draws = metric.draws if intervals else 0
    if metric.rows is not None:
        found = {
            which: estimate(of_mean(values), len(values), draws)[""] for which, values in metric.rows(rows).items()
        }
    else:
        assert metric.whole is not None, "a metric measures rows or the whole"
        found = estimate(metric.whole(rows), len(rows), draws)
    return {f"{name}/{which}" if which else name: value for which, value in found.items()}


def check_rows(name: str, rows: Iterable[Row]) -> None:
    """Raise ``SettingsError`` if a metric is no measure of one of the rows."""
    needs = METRICS[name].needs
    for row in rows:
        if not needs.fits(row):
            raise SettingsError(f"the metric '{name}' measures {needs.what}; record '{row.id}' is something else")


def check_metrics(settings: TaskSettings) -> None:
    """Raise ``SettingsError`` for a metric or post-processing that there is not."""
    for name in settings.metrics:
        if name not in METRICS:
            known = ", ".join(METRICS)
            raise SettingsError(
                f"unknown metric '{name}'. Known: {known}.{nearest(name, list(METRICS))}", key="metrics"
            )
    if "meteor" in settings.metrics:
        check_meteor()
    if settings.clean is not None and settings.clean not in CLEANERS:
        known = ", ".join(CLEANERS)
        raise SettingsError(
            f"unknown post-processing '{settings.clean}'. Known: {known}.{nearest(settings.clean, list(CLEANERS))}",
            "clean",
        )


def exact(said: str, truths: Sequence[str]) -> float:
    """1 for an answer that equals a true one but for case and outer spaces."""
    return float(_plain(said) in map(_plain, truths))


def relaxed(said: str, truths: Sequence[str]) -> float:
    """1 for an answer that begins or ends with a true one (mBLIP's ``relaxed_acc``)."""
    ends = [_plain(truth) for truth in truths]
    return float(any(_plain(said).startswith(end) or _plain(said).endswith(end) for end in ends))


def _plain(text: str) -> str:
    return text.strip().casefold()


def each(value: Callable[[str, Sequence[str]], float]) -> Callable[[Sequence[Row]], Mapping[str, Sequence[float]]]:
    """A measure of rows from one of an answer and the true ones."""
    return lambda rows: {"": [value(row.said, row.truths) for row in rows]}


def two_by_two(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Winoground's three scores (Thrush et al., arXiv 2204.03162): for each picture its caption must score higher than
    the other one (text), for each caption its picture (image), and both (group). Equal scores are wrong."""
    text = [float(s[0][0] > s[0][1] and s[1][1] > s[1][0]) for s in (row.scores for row in rows)]
    image = [float(s[0][0] > s[1][0] and s[1][1] > s[0][1]) for s in (row.scores for row in rows)]
    return {"text": text, "image": image, "group": [t * i for t, i in zip(text, image, strict=True)]}


def preferred(rows: Sequence[Row]) -> dict[str, list[float]]:
    """1 where the picture that people preferred scores higher; equal scores speak for the first (t2v_metrics)."""
    return {"": [float((row.scores[0][0] < row.scores[1][0]) == row.meta["label"]) for row in rows]}


def recall(rows: Sequence[Row]) -> Weighted:
    """Recall at 1, 5 and 10: of pictures, whether one of their captions is among the first, and of captions, whether
    their picture is. A picture is drawn together with its captions."""
    names = [f"{name}_r{k}" for name in ("text", "image") for k in FIRST]
    table = []
    for row in rows:
        text, images = row.meta["text_rank"], row.meta["image_ranks"]
        hits = [text < k for k in FIRST] + [sum(rank < k for rank in images) for k in FIRST]
        table.append([*hits, 1, len(images)])

    def shares(sums: Floats) -> dict[str, Floats]:
        counts = np.repeat(sums[:, -2:], len(FIRST), axis=1)
        return dict(zip(names, share(sums[:, :-2], counts, math.nan).T, strict=True))

    return of_sums(table, shares)


def rated(agreement: Callable[[Floats, Floats], Callable[[Floats], Floats]]) -> Callable[[Sequence[Row]], Weighted]:
    """A measure of rows from the agreement of people's ratings with scores, of one picture and one text each.

    One row alone agrees with nothing.
    """

    def measure_agreement(rows: Sequence[Row]) -> Weighted:
        if len(rows) < 2:
            return lambda weights: {}
        measured = agreement(
            np.array([row.meta["rating"] for row in rows], dtype=np.float64),
            np.array([row.scores[0][0] for row in rows]),
        )
        return lambda weights: {"": measured(weights)}

    return measure_agreement


def in_order(people: Floats, scores: Floats) -> Callable[[Floats], Floats]:
    """Pairwise accuracy; all draws have the epsilon that is the best one of all rows."""
    return partial(weighted_pairwise_accuracy, people, scores, pairwise_accuracy(people, scores)[1])


def area(rows: Sequence[Row]) -> Weighted:
    """Area under the ROC curve of scores, of one picture and one text each."""
    labels, scores = [bool(row.meta["label"]) for row in rows], [row.scores[0][0] for row in rows]
    return lambda weights: {"": weighted_roc_auc(labels, scores, weights)}


def judged(rows: Sequence[Row]) -> dict[str, list[float]]:
    """The mean grade of every answer that a judge graded; nothing while there are none."""
    graded = [mean(row.meta["grades"]) for row in rows if row.meta.get("grades")]
    return {"": graded} if graded else {}


def _is_graded_low(row: Row) -> bool:
    return bool(row.meta.get("grades")) and mean(row.meta["grades"]) < 0.5


def contains_truth(said: str, truths: Iterable[str]) -> float:
    """1 if one of the alternatives (``<OR>``) is in the answer with all of its parts (``<AND>``), whatever its case.

    A rule for ViP-Bench that needs no judge. It misses right answers in other words.
    """
    said = said.casefold()
    alternatives = [one for truth in truths for one in truth.split("<OR>")]
    return float(any(all(part.strip().casefold() in said for part in one.split("<AND>")) for one in alternatives))


def existence(rows: Sequence[Row]) -> Weighted:
    """POPE's five numbers, of what POPE's own rule takes an answer for."""
    return of_sums(pope_counts([yes_or_no(row.said) for row in rows], [row.truths[0] for row in rows]), pope_of_counts)


def hallucination(rows: Sequence[Row]) -> Weighted:
    """CHAIR's two numbers; words for objects are those of the file in ``meta["synonyms"]``, or our own."""
    finder = _finder(rows[0].meta.get("synonyms"))
    counts = chair_counts([row.said for row in rows], [set(row.meta["objects"]) for row in rows], finder)
    return of_sums(counts, chair_of_counts)


@cache
def _finder(synonyms: str | None) -> ObjectFinder:
    words = read_objects(Path(synonyms) if synonyms else None)
    return ObjectFinder(words, compat=bool(synonyms))  # our own words are all found


def _has_more(row: Row) -> bool:
    """Whether a caption mentions an object that is not there."""
    return not set(_finder(row.meta.get("synonyms")).find(row.said)) <= set(row.meta["objects"])


def _is_low(value: Callable[[str, Sequence[str]], float]) -> Callable[[Row], bool]:
    return lambda row: value(row.said, row.truths) < 0.5


def captions(metric: Callable[[Sequence[str], Sequence[Sequence[str]]], T]) -> Callable[[Sequence[Row]], T]:
    """A measure of rows from one of tokenised captions and their references."""

    def measure_captions(rows: Sequence[Row]) -> T:
        said = [caption_tokens(row.said, row.language) for row in rows]
        return metric(said, [[caption_tokens(truth, row.language) for truth in row.truths] for row in rows])

    return measure_captions


def _bleu(said: Sequence[str], references: Sequence[Sequence[str]], n: int) -> Weighted:
    return of_sums(bleu_counts(said, references), lambda sums: {"": bleu_of_counts(sums, n)})


METRICS: dict[str, Metric] = {
    "accuracy": Metric("share of answers that equal a true one", rows=each(exact), wrong=_is_low(exact)),
    "relaxed_accuracy": Metric(
        "share of answers that begin or end with a true one", rows=each(relaxed), wrong=_is_low(relaxed)
    ),
    "two_by_two": Metric(
        "whether both pictures get their own caption, and both captions their picture", rows=two_by_two, needs=FOURS
    ),
    "preferred": Metric("share of pairs in which the preferred picture scores higher", rows=preferred, needs=CHOICES),
    "auc": Metric("area under the ROC curve, of pairs that fit and pairs that do not", whole=area, needs=LABELS),
    "pairwise_accuracy": Metric(
        "share of pairs put in order as people do, ties calibrated",
        whole=rated(in_order),
        needs=RATINGS,
        draws=FEW,
    ),
    "pearson": Metric(
        "Pearson's correlation with people's ratings",
        whole=rated(lambda *both: partial(weighted_pearson, *both)),
        needs=RATINGS,
    ),
    "kendall": Metric(
        "Kendall's tau-b with people's ratings",
        whole=rated(lambda *both: partial(weighted_tau_b, *both)),
        needs=RATINGS,
        draws=FEW,
    ),
    "judged": Metric("mean grade of a judge (sightbridge judge)", rows=judged, wrong=_is_graded_low),
    "contains_truth": Metric(
        "share of answers with the true one in them", rows=each(contains_truth), wrong=_is_low(contains_truth)
    ),
    "recall": Metric("share of what was searched that is among the first 1, 5, 10", whole=recall, needs=RANKS),
    "vqa_accuracy": Metric(
        "VQA's official accuracy over ten annotators", rows=each(vqa_accuracy), wrong=_is_low(vqa_accuracy)
    ),
    "soft_accuracy": Metric(
        "the same of answers as they are (mBLIP)", rows=each(soft_accuracy), wrong=_is_low(soft_accuracy)
    ),
    "pope": Metric(
        "accuracy, precision, recall, F1 and share of yes, yes being what is looked for",
        whole=existence,
        needs=YES_OR_NO,
        wrong=lambda row: yes_or_no(row.said) != row.truths[0],
    ),
    "chair": Metric(
        "captions, and mentions, of objects that are not there", whole=hallucination, needs=OBJECTS, wrong=_has_more
    ),
    "cider": Metric(
        "CIDEr-D of captions",
        rows=captions(lambda said, references: {"": cider_of_each(said, references)}),
        percent=False,
    ),
    **{f"bleu_{n}": Metric(f"BLEU-{n} of captions", whole=captions(partial(_bleu, n=n))) for n in range(1, MAX_N + 1)},
    "rouge_l": Metric(
        "ROUGE-L of captions", whole=captions(lambda said, references: of_mean(rouge_l_of_each(said, references)))
    ),
    "meteor": Metric("METEOR of English captions, by its own Java program", whole=captions(meteor), draws=FEW),
}
"""Every metric, by the name that a task gives it."""

CAPTION_METRICS = frozenset({"cider", "rouge_l", "meteor", *(f"bleu_{n}" for n in range(1, MAX_N + 1))})
"""Those that count words, which some languages have to be parted into."""

CLEANERS: dict[str, Callable[[str], str]] = {"vqa": normalise}
"""What is done to an answer before it is measured, by the name that a task gives it."""
