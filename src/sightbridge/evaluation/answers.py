"""What a model's answers to records are worth: the evaluation that a run makes while it trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from sightbridge.config.evaluation import UNMARKED, EvaluationSettings
from sightbridge.config.generation import GenerationSettings
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.errors import SettingsError
from sightbridge.evaluation.metrics import Row, measure
from sightbridge.evaluation.predictions import line_of, to_row
from sightbridge.evaluation.results import cleaner
from sightbridge.evaluation.run import Work
from sightbridge.generation.answer import answer_batch
from sightbridge.models.vlm import VisionLanguageModel


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
    said = answer_batch(model, processor, asked, generation, settings.batch_size)
    values = _measure(_rows(asked, said, truths), parts, settings)
    if settings.unmarked:
        if not any(record.marks for record in asked):
            raise SettingsError("no record has marks to be left out", key="evaluation.unmarked")
        bare = [replace(record, marks=(), plan=None) for record in asked]
        said = answer_batch(model, processor, bare, generation, settings.batch_size)
        values |= {
            UNMARKED + name: value for name, value in _measure(_rows(asked, said, truths), parts, settings).items()
        }
    return values


def _measure(rows: Sequence[Row], parts: dict[str, list[int]], settings: EvaluationSettings) -> dict[str, float]:
    """Every metric of all answers, and of each part of them."""
    values = {}
    for metric in settings.metrics:
        values |= {name: found.value for name, found in measure(metric, rows, intervals=False).items()}
        for part, places in parts.items():
            own = measure(metric, [rows[place] for place in places], intervals=False)
            values |= {f"{name}/{part}": found.value for name, found in own.items()}
    return values


def _rows(records: Sequence[Record], said: Sequence[str], truths: Sequence[Sequence[str]]) -> list[Row]:
    return [
        Row(record.id, text, tuple(true), record.language)
        for record, text, true in zip(records, said, truths, strict=True)
    ]


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


def measure_tasks(
    model: VisionLanguageModel, processor: Processor, works: Sequence[Work], batch_size: int
) -> dict[str, float]:
    """Answer the records of tasks and measure them as the tasks say: values ``TASK/PART/METRIC``, and ``TASK/METRIC``,
    the mean over parts."""
    values: dict[str, float] = {}
    by_task: dict[str, list[float]] = defaultdict(list)
    for work in works:
        task, records = work.part.task, [item for item in work.items if isinstance(item, Record)]
        said = answer_batch(model, processor, records, task.settings.generation, batch_size)
        lines = [
            line_of(record, work.part.language_of(record), text) for record, text in zip(records, said, strict=True)
        ]
        rows = [to_row(line, cleaner(task.settings)) for line in lines if line["truths"]]
        for metric in task.settings.metrics:
            for name, found in measure(metric, rows, intervals=False).items():
                by_task[f"{task.name}/{name}"].append(found.value)
                if work.part.name:
                    values[f"{work.part.label}/{name}"] = found.value
    return {name: mean(found) for name, found in by_task.items()} | values
