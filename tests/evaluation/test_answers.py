from dataclasses import replace
from pathlib import Path

import pytest

from sightbridge.config.evaluation import EvaluationSettings
from sightbridge.config.generation import GenerationSettings
from sightbridge.data.record import Record
from sightbridge.errors import SettingsError
from sightbridge.evaluation import answers
from sightbridge.text.turns import Turn
from sightbridge.visual_prompts import Mark, Region, Shape


def record(picture: str, question: str, truth: str | None, **meta: object) -> Record:
    turns = (Turn("user", question), Turn("assistant", truth)) if truth else (Turn("user", question),)
    return Record(picture, (Path(picture),), turns, meta=meta)


RECORDS = [
    record("1", "caption", "a red dog runs fast"),
    record("1", "caption", "the dog is red and fast"),
    record("2", "caption", "x", references=["two blue cats sit here", "blue cats"]),
    record("3", "what?", "Yes", answers=["yes", "maybe"]),
    record("4", "open", None),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    says = {"1": "A red dog runs fast.", "2": "two blue cats sit here", "3": "MAYBE"}

    def answer_batch(model, processor, records, settings, batch_size):
        asked.extend(record.id for record in records)
        return [says[record.id] for record in records]

    monkeypatch.setattr(answers, "answer_batch", answer_batch)
    return asked


def measure(**settings: object) -> dict[str, float]:
    chosen = EvaluationSettings.model_validate(settings)
    return answers.measure_answers(None, None, RECORDS, chosen, GenerationSettings())  # type: ignore[arg-type]


def test_captions_of_one_picture_are_references_of_one_answer(asked: list[str]):
    values = measure(metrics=["cider", "rouge_l", "bleu_4"])
    assert asked == ["1", "2", "3"]
    assert values["rouge_l"] == pytest.approx(1) and values["bleu_4"] == pytest.approx(1, abs=0.3)
    assert list(values) == ["cider", "rouge_l", "bleu_4"] and values["cider"] > 3


def test_accuracy_takes_any_true_answer_whatever_its_case(asked: list[str]):
    assert measure(metrics=["accuracy"]) == {"accuracy": pytest.approx(2 / 3)}  # a full stop is a difference


def test_several_languages_are_measured_each_for_itself(asked: list[str], monkeypatch: pytest.MonkeyPatch):
    languages = {"1": "de", "2": "en", "3": "de", "4": "en"}
    spoken = [replace(record, language=languages[record.id]) for record in RECORDS]
    monkeypatch.setattr(f"{__name__}.RECORDS", spoken)
    values = measure(metrics=["accuracy", "rouge_l"])
    assert list(values) == ["accuracy", "accuracy/de", "accuracy/en", "rouge_l", "rouge_l/de", "rouge_l/en"]
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert (values["accuracy/de"], values["accuracy/en"]) == (0.5, 1.0)


def test_only_so_many_records_are_answered(asked: list[str]):
    measure(metrics=["accuracy"], records=2)
    assert asked == ["1", "2"]


def test_without_metrics_nothing_is_answered(asked: list[str]):
    assert measure() == {} and asked == []


def marked(picture: str, shape: Shape, truth: str) -> Record:
    return replace(record(picture, "What is marked?", truth), marks=(Mark(Region((0, 0, 5, 5)), shape),))


def test_marked_records_are_measured_by_shape_and_once_more_without_their_marks(monkeypatch: pytest.MonkeyPatch):
    records = [marked("1", "arrow", "dog"), marked("1", "mask", "cat"), marked("2", "mask", "bird")]
    shown: list[tuple[str, int]] = []

    def answer_batch(model, processor, records, settings, batch_size):
        shown.extend((record.id, len(record.marks)) for record in records)
        return ["dog" if not record.marks else record.turns[-1].text for record in records]

    monkeypatch.setattr(answers, "answer_batch", answer_batch)
    monkeypatch.setattr(f"{__name__}.RECORDS", records)
    assert measure(metrics=["accuracy"], unmarked=True) == {
        "accuracy": 1,
        "accuracy/arrow": 1,
        "accuracy/mask": 1,
        "unmarked_accuracy": pytest.approx(1 / 3),
        "unmarked_accuracy/arrow": 1,
        "unmarked_accuracy/mask": 0,
    }
    # one picture with one question is two records if other things are marked on it
    assert shown == [("1", 1), ("1", 1), ("2", 1), ("1", 0), ("1", 0), ("2", 0)]


def test_marks_that_are_not_there_cannot_be_left_out(asked: list[str]):
    with pytest.raises(SettingsError, match="no record has marks"):
        measure(metrics=["accuracy"], unmarked=True)
