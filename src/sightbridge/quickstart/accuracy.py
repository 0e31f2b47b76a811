"""How many questions are answered rightly, per type, with and without seeing the picture."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sightbridge.config.generation import GenerationSettings
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.generation.answer import answer_batch
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.text.turns import IMAGE_MARKER

ANSWER = GenerationSettings(max_new_tokens=12)
"""Greedy; the longest answer of the questions has eight tokens."""


@dataclass(frozen=True)
class Answered:
    """A question with what the model said; ``said`` equals ``truth`` or it is wrong."""

    record: Record
    truth: str
    said: str

    @property
    def right(self) -> bool:
        """Exact match, but for case."""
        return self.said.casefold() == self.truth.casefold()


def ask_all(model: VisionLanguageModel, processor: Processor, records: Sequence[Record]) -> list[Answered]:
    """Answer every record's last question; its true answer is the record's last turn."""
    said = answer_batch(model, processor, records, ANSWER, batch_size=128)
    return [Answered(r, r.turns[-1].text or "", s) for r, s in zip(records, said, strict=True)]


def without_pictures(records: Sequence[Record]) -> list[Record]:
    """The same questions with the picture and its marker taken away."""
    blind = []
    for record in records:
        turns = tuple(replace(t, text=(t.text or "").replace(f"{IMAGE_MARKER}\n", "")) for t in record.turns)
        blind.append(replace(record, images=(), turns=turns))
    return blind


def accuracy_by(answers: Sequence[Answered], key: str) -> dict[str, float]:
    """Share of right answers for each value of ``meta[key]`` (or of ``language``)."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        groups[answer.record.language if key == "language" else answer.record.meta[key]].append(answer.right)
    return {name: round(sum(hits) / len(hits), 4) for name, hits in sorted(groups.items())}


def with_mean(values: dict[str, float]) -> dict[str, float]:
    """The values and their unweighted mean, so that a frequent type does not count for more."""
    return {**values, "mean": round(sum(values.values()) / len(values), 4)}


def chance(answers: Sequence[Answered]) -> dict[str, float]:
    """Accuracy of always giving the commonest answer of a type and language."""
    truths: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for answer in answers:
        truths[answer.record.meta["type"], answer.record.language][answer.truth] += 1
    hits: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for (type_, _), counts in truths.items():
        hits[type_] += counts.most_common(1)[0][1]
        totals[type_] += counts.total()
    return {type_: round(hits[type_] / totals[type_], 4) for type_ in sorted(totals)}
