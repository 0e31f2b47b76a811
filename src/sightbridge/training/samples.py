"""What the model says to a few records at the end of a run, beside what it should say."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from sightbridge.config.generation import GenerationSettings
from sightbridge.config.load import write_atomically
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.generation.answer import answer_batch
from sightbridge.images.load import describe_source
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.text.turns import IMAGE_MARKER

SAMPLES = "samples.jsonl"
HOW_MANY = 12


def write_samples(
    model: VisionLanguageModel,
    processor: Processor,
    records: Sequence[Record],
    settings: GenerationSettings,
    folder: Path,
) -> None:
    """Answer a few of ``records``, and write ``samples.jsonl``: pictures, question, answer, truth.

    Only records with pictures and a true answer are taken; an answer is at most 64 tokens long.
    """
    usable = [record for record in records if record.images and record.turns[-1].role == "assistant"]
    chosen = random.Random(0).sample(usable, min(HOW_MANY, len(usable)))
    brief = settings.model_copy(update={"max_new_tokens": min(settings.max_new_tokens, 64), "num_answers": 1})
    lines = [
        {
            "id": record.id,
            "images": [describe_source(source) for source in record.images],
            "question": _last_question(record),
            "answer": said,
            "truth": record.turns[-1].text,
        }
        for record, said in zip(chosen, answer_batch(model, processor, chosen, brief), strict=True)
    ]
    write_atomically(folder / SAMPLES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _last_question(record: Record) -> str:
    asked = [turn.text or "" for turn in record.turns[:-1] if turn.role == "user"]
    return asked[-1].replace(IMAGE_MARKER, "").strip() if asked else ""
