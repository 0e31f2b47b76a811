"""What a model's answers to records are worth: the evaluation that a run makes while it trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from sightbridge.config.evaluation import UNMARKED, EvaluationSettings
from sightbridge.config.generation import GenerationSettings
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.errors import SettingsError
from sightbridge.evaluation.captions import bleu, cider, rouge_l
from sightbridge.evaluation.tokenize import caption_tokens
from sightbridge.generation.answer import answer_batch
from sightbridge.models.vlm import VisionLanguageModel

Measure = Callable[[Sequence[str], Sequence[Sequence[str]]], float]
"""Of one answer per record and the true ones (at least one each); higher is better."""


def accuracy(said: Sequence[str], truths: Sequence[Sequence[str]]) -> float:
    """Share of answers that equal a true one but for case."""
    hits = [text.casefold() in {truth.casefold() for truth in true} for text, true in zip(said, truths, strict=True)]
    return sum(hits) / len(hits)


def caption_metric(metric: Measure) -> Measure:
    """A measure of texts from one of their tokens."""

    def measure(said: Sequence[str], truths: Sequence[Sequence[str]]) -> float:
        return metric([caption_tokens(text) for text in said], [[caption_tokens(text) for text in t] for t in truths])

    return measure


METRICS: dict[str, Measure] = {
    "accuracy": accuracy,
    "cider": caption_metric(cider),
    "bleu_4": caption_metric(bleu),
    "rouge_l": caption_metric(rouge_l),
}


def measure_answers(
    model: VisionLanguageModel,
    processor: Processor,
    records: Sequence[Record],
    settings: EvaluationSettings,
    generation: GenerationSettings,
) -> dict[str, float]:
    """Answer the first records and measure the answers by every metric asked for.

    Of records in several languages each metric is also measured per language, as ``accuracy/de``, and of records with
    marks of several shapes per shape, as ``accuracy/arrow``. With ``unmarked`` the same questions are answered again
    without the marks, and every value comes a second time, as ``unmarked_accuracy/arrow``. A record's true answers are
    ``meta["references"]`` or ``meta["answers"]``, else its last turn; records with the same picture files, marks and
    question count once, with the answers of all of them, as caption metrics expect.

    Raises ``SettingsError`` for ``unmarked`` if no record is marked.
    """
    if not settings.metrics:
        return {}
    groups = _group(records)[: settings.records]
    asked, truths = [record for record, _ in groups], [true for _, true in groups]
    parts = _parts(asked)
    values = _measure(answer_batch(model, processor, asked, generation, settings.batch_size), truths, parts, settings)
    if settings.unmarked:
        if not any(record.marks for record in asked):
            raise SettingsError("no record has marks to be left out", key="evaluation.unmarked")
        bare = [replace(record, marks=(), plan=None) for record in asked]
        said = answer_batch(model, processor, bare, generation, settings.batch_size)
        values |= {UNMARKED + name: value for name, value in _measure(said, truths, parts, settings).items()}
    return values


def _measure(
    said: Sequence[str], truths: Sequence[list[str]], parts: dict[str, list[int]], settings: EvaluationSettings
) -> dict[str, float]:
    """Every metric of all answers, and of each part of them."""
    values = {}
    for name in settings.metrics:
        values[name] = METRICS[name](said, truths)
        for part, places in parts.items():
            own = METRICS[name]([said[place] for place in places], [truths[place] for place in places])
            values[f"{name}/{part}"] = own
    return values


def _parts(records: Sequence[Record]) -> dict[str, list[int]]:
    """The places of the records in each language, and with each shape of mark, where there are several of these."""
    languages: dict[str, list[int]] = defaultdict(list)
    shapes: dict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        languages[record.language].append(place)
        for shape in {mark.shape for mark in record.marks}:
            shapes[shape].append(place)
    # where there is one, the whole says it
    return {part: kind[part] for kind in (languages, shapes) if len(kind) > 1 for part in sorted(kind)}


def _group(records: Sequence[Record]) -> list[tuple[Record, list[str]]]:
    groups: dict[tuple[object, ...], tuple[Record, list[str]]] = {}
    for record in records:
        if record.turns[-1].role != "assistant":
            continue
        asked = tuple((turn.role, turn.text) for turn in record.turns[:-1])
        _, truths = groups.setdefault((tuple(map(str, record.images)), record.marks, asked), (record, []))
        truths += record.meta.get("references") or record.meta.get("answers") or [record.turns[-1].text or ""]
    return list(groups.values())
