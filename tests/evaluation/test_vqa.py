"""VQA accuracy: LAVIS' own numbers, and that nothing but the answers matters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightbridge.evaluation.vqa import normalise, soft_accuracy, strip_signs, vqa_accuracy

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lavis" / "text_procs.json").read_text())


def test_parity_of_normalised_answers() -> None:
    wrong = {said: normalise(said) for said, expected in GOLDEN["vqa_norm"] if normalise(said) != expected}
    print(f"parity VQA answers with LAVIS: {len(wrong)} of {len(GOLDEN['vqa_norm'])} differ")
    assert not wrong


def test_parity_of_accuracies() -> None:
    golden = GOLDEN["vqa_eval"]
    values = {key: vqa_accuracy(golden["pred"][key], golden["gt"][key]) for key in golden["gt"]}
    assert {key: round(100 * value, 2) for key, value in values.items()} == golden["per_question"]
    overall = 100 * sum(values.values()) / len(values)
    assert round(overall, 2) == golden["accuracy"]["overall"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("y'alld've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),
        ("its the", "its"),
        ("1,000 - 2/3", "1000 23"),
        ("." * 40, "." * 8),
    ],
)
def test_quirks_of_the_official_scorer(said: str, expected: str) -> None:
    assert normalise(said) == expected


def test_true_answers_are_normalised_only_without_compat() -> None:
    truths = ["the two"] * 10
    assert vqa_accuracy("two", truths) == 0 and vqa_accuracy("two", truths, compat=False) == 1
    assert strip_signs("2,") == "2 "


answers = st.lists(st.sampled_from(["cat", "dog", "a cat", "2", "two"]), min_size=2, max_size=10)


@given(answers, st.sampled_from(["cat", "dog", "bird", "two"]), st.randoms())
def test_order_of_people_does_not_matter_and_more_of_one_mind_never_hurt(truths, said, rng) -> None:
    value = vqa_accuracy(said, truths)
    assert 0 <= value <= 1
    assert vqa_accuracy(said, rng.sample(truths, len(truths))) == pytest.approx(value)
    assert soft_accuracy(said, [*truths, said]) >= soft_accuracy(said, [*truths, "other"]) - 1e-12


def test_soft_accuracy_leaves_each_person_out() -> None:
    assert soft_accuracy("cat", ["cat", "cat", "dog"]) == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)
    assert soft_accuracy("cat", ["cat"] * 4) == 1
