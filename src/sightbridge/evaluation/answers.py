"""What a model's answers to records are worth: the evaluation that a run makes while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sightbridge.config.evaluation import EvaluationSettings
from sightbridge.config.generation import GenerationSettings
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.evaluation.captions import bleu, caption_tokens, cider, rouge_l
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

    Of records in several languages each metric is also measured per language, as ``accuracy/de``. A record's true
    answers are ``meta["references"]`` or ``meta["answers"]``, else its last turn; records with the same picture files
    and question count once, with the answers of all of them, as caption metrics expect.
    """
    if not settings.metrics:
        return {}
    groups = _group(records)[: settings.records]
    said = answer_batch(model, processor, [record for record, _ in groups], generation, settings.batch_size)
    by_language: dict[str, list[int]] = {}
    for place, (record, _) in enumerate(groups):
        by_language.setdefault(record.language, []).append(place)
    if len(by_language) == 1:
        by_language = {}  # the whole says it
    values = {}
    for name in settings.metrics:
        values[name] = METRICS[name](said, [true for _, true in groups])
        for language, places in sorted(by_language.items()):
            own = METRICS[name]([said[place] for place in places], [groups[place][1] for place in places])
            values[f"{name}/{language}"] = own
    return values


def _group(records: Sequence[Record]) -> list[tuple[Record, list[str]]]:
    groups: dict[tuple[object, ...], tuple[Record, list[str]]] = {}
    for record in records:
        if record.turns[-1].role != "assistant":
            continue
        asked = tuple((turn.role, turn.text) for turn in record.turns[:-1])
        _, truths = groups.setdefault((tuple(map(str, record.images)), asked), (record, []))
        truths += record.meta.get("references") or record.meta.get("answers") or [record.turns[-1].text or ""]
    return list(groups.values())
