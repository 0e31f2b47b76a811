"""What the model says to a few records at the end of a run, beside what it should say."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from sightbridge.config.generation import GenerationSettings
from sightbridge.config.load import write_atomically
from sightbridge.data.marks import drawing
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.generation.answer import answer_batch
from sightbridge.images.load import describe_source, load_image
from sightbridge.images.save import save_picture
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.text.turns import IMAGE_MARKER

SAMPLES = "samples.jsonl"
MARKED = "samples"
HOW_MANY = 12


def write_samples(
    model: VisionLanguageModel,
    processor: Processor,
    records: Sequence[Record],
    settings: GenerationSettings,
    folder: Path,
) -> None:
    """Answer a few of ``records``, and write ``samples.jsonl``: pictures, question, answer, truth.

    Only records with pictures and a true answer are taken; an answer is at most 64 tokens long. A picture with marks
    is written into the folder ``samples`` as the model saw it, which the picture's own file does not show.
    """
    usable = [record for record in records if record.images and record.turns[-1].role == "assistant"]
    chosen = random.Random(0).sample(usable, min(HOW_MANY, len(usable)))
    brief = settings.model_copy(update={"max_new_tokens": min(settings.max_new_tokens, 64), "num_answers": 1})
    anchor = processor.image_settings.anchor
    lines = [
        {
            "id": record.id,
            "images": [_shown(record, position, folder, anchor) for position in range(len(record.images))],
            "question": _last_question(record),
            "answer": said,
            "truth": record.turns[-1].text,
        }
        for record, said in zip(chosen, answer_batch(model, processor, chosen, brief), strict=True)
    ]
    write_atomically(folder / SAMPLES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _shown(record: Record, position: int, folder: Path, anchor: int) -> str:
    """The file that shows what was seen at ``position``: the picture's own, or one with its marks."""
    marks = drawing(record, position)
    if not marks.name:
        return describe_source(record.images[position])
    name = hashlib.sha256(f"{record.where}/{marks.name}".encode()).hexdigest()[:16]
    path = folder / MARKED / f"{name}.png"
    save_picture(load_image(marks.on(record.images[position], anchor)), path)
    return str(path)


def _last_question(record: Record) -> str:
    asked = [turn.text or "" for turn in record.turns[:-1] if turn.role == "user"]
    return asked[-1].replace(IMAGE_MARKER, "").strip() if asked else ""
