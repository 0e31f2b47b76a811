"""Questions about pictures: MaXM in seven languages, POPE and CHAIR about what is not there, ViP-Bench about regions.

MaXM:       {"annotations": [{"image_id": "0a0a", "qa_pairs": [{"question_id": "1", "question": "...",
             "answers": [...], "processed_answers": [...]}]}]}
POPE:       {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a car?", "label": "no"}
CHAIR:      {"image": "COCO_val2014_000000310196.jpg", "objects": ["person", "skis"]} (POPE's ground truth)
ViP-Bench:  {"question_id": 0, "image": "0.png", "text": "..."}, and "vip-bench-meta-data.json" beside the splits:
            {"v1_0": {"question": "...", "answer": "4", "capability": ["ocr", "math"]}}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightbridge.data.readers.rows import Row, read_rows, take, take_id, take_texts
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.text.turns import IMAGE_MARKER, Turn


def read_maxm(path: Path, images_folder: Path) -> Iterator[Record]:
    """Yield a record for every question; its true answers are the ``processed_answers``.

    Raises ``DataError`` naming file, row and key for a wrong row.
    """
    for _, where, content in read_rows(path):
        for number, row in enumerate(take(content, "annotations", (list,), where, "a list"), start=1):
            here = f"{path}, annotation {number}"
            image = images_folder / f"{take(row, 'image_id', (str,), here, 'the name of a picture')}.jpg"
            for pair in take(row, "qa_pairs", (list,), here, "a list of questions"):
                answers = take_texts(pair, "processed_answers", here, "a list of answers")
                question = take(pair, "question", (str,), here, "a text")
                kind = "collection" if pair.get("is_collection") in (True, "true") else "other"
                id = take_id(pair, "question_id", here) or f"{path.stem}-{number}"
                yield _question(id, image, question, answers, {"type": kind}, here)


def read_pope(path: Path, images_folder: Path) -> Iterator[Record]:
    """Yield a record for every question; errors as above."""
    for number, where, row in read_rows(path):
        label = take(row, "label", (str,), where, "yes or no")
        if label not in ("yes", "no"):
            raise DataError(f"{where}, key 'label': expected yes or no, got '{label}'.")
        image = images_folder / take(row, "image", (str,), where, "a file name")
        id = take_id(row, "question_id", where) or str(number)
        yield _question(id, image, take(row, "text", (str,), where, "a question"), [label], {}, where)


def read_vip_bench(path: Path, images_folder: Path, meta: str = "../vip-bench-meta-data.json") -> Iterator[Record]:
    """Yield a record for every question, its ``meta`` what the judge needs.

    ``meta`` is the file of true answers, seen from the folder of ``path``. Errors as above.
    """
    truths = _truths(path.parent / meta)
    for _, where, row in read_rows(path):
        id = f"v1_{take_id(row, 'question_id', where)}"
        if id not in truths:
            raise DataError(f"{where}: question {id} is not in {path.parent / meta}.")
        image = images_folder / take(row, "image", (str,), where, "a file name")
        truth = truths[id]
        here = f"{path.parent / meta}, '{id}'"
        kept: dict[str, Any] = {
            "question": take(truth, "question", (str,), here, "a text"),
            "type": "+".join(capabilities := sorted(take_texts(truth, "capability", here, "a list of capabilities"))),
            "tags": capabilities,
        }
        answer = take(truth, "answer", (str,), here, "a text")
        yield _question(id, image, take(row, "text", (str,), where, "a question"), [answer], kept, where)


def read_chair(path: Path, images_folder: Path, synonyms: str | None = None) -> Iterator[Record]:
    """Yield a record for every picture, to be described; ``meta["objects"]`` are the classes of what is in it.

    ``synonyms`` is a file of words for objects beside ``path``, such as CHAIR's. Errors as above.
    """
    words = path.parent / synonyms if synonyms else None
    if words is not None and not words.is_file():
        raise DataError(f"{words}: there is no such file of words for objects; leave out 'synonyms' for our own.")
    for _, where, row in read_rows(path):
        name = take(row, "image", (str,), where, "a file name")
        objects = take_texts(row, "objects", where, "a list of objects")
        meta = {"objects": objects} | ({"synonyms": str(words)} if words else {})
        turns = (Turn("user", IMAGE_MARKER), Turn("assistant", ", ".join(objects)))
        yield Record(name, (images_folder / name,), turns, meta=meta, where=where)


def _truths(path: Path) -> dict[str, Row]:
    """The one object of the file, whose values are objects."""
    _, where, content = next(iter(read_rows(path)))
    for key, value in content.items():
        if not isinstance(value, dict):
            raise DataError(f"{where}, key '{key}': expected an object {{...}}, got {value!r}.")
    return content


def _question(id: str, image: Path, question: str, answers: list[str], meta: dict[str, Any], where: str) -> Record:
    if not answers:
        raise DataError(f"{where}: the question has no true answer.")
    turns = (Turn("user", f"{IMAGE_MARKER}\n{question}"), Turn("assistant", answers[0]))
    return Record(id, (image,), turns, meta=meta | {"answers": answers}, where=where)
