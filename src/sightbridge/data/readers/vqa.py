"""Questions about pictures: LAVIS' rows and the official files of VQAv2 and OK-VQA.

    training:    {"image": "train2014/000001.jpg", "question": "What is it?", "answer": ["bus", "bus", ...],
                  "question_id": 1000, "dataset": "vqa"}
    evaluation:  {"image": "val2014/000002.jpg", "question": "How many?", "question_id": 2000}
    official:    {"questions": [{"image_id": 2, "question": "How many?", "question_id": 2000}, ...],
                  "data_subtype": "val2014"}

``answer`` may be one text; ``answers`` is read as well. An official questions file brings the annotations file that
lies beside it under its official name, if there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightbridge.data.readers.rows import Row, find_image, read_rows, take, take_id, take_texts
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.images.load import ImageSource
from sightbridge.text.turns import IMAGE_MARKER, Turn

ANSWER_KEYS = ("answer", "answers")
KNOWN_KEYS = ("image", "question", *ANSWER_KEYS)


def read_vqa(path: Path, images_folder: Path) -> Iterator[Record]:
    """Yield a record for every question in ``path``; without answers it waits for one.

    The answer to learn is the one given most often, the first of them in a tie. LAVIS trains on every answer, weighted
    by how often it was given; that is left here, since generating one text for one question is what the model is
    asked to do later. All answers are kept in ``meta["answers"]``, and every other key of the row as it is.
    Raises ``DataError`` naming file, row and key for a row that is not in one of the formats above.
    """
    for number, where, row in read_rows(path):
        if "questions" in row:
            yield from _read_official(row, path, images_folder)
            continue
        name = take(row, "image", (str,), where, "a file name")
        yield question_record(row, [find_image(name, images_folder)], f"{path.stem}-{number}", where)


def question_record(row: Row, images: Sequence[ImageSource], default_id: str, where: str) -> Record:
    """Make a record of a row with ``question`` and perhaps ``answer``, whose pictures were found already."""
    question = take(row, "question", (str,), where, "a text")
    key = next((key for key in ANSWER_KEYS if row.get(key) is not None), None)
    answers = take_texts(row, key, where, "an answer or a list of answers") if key else []
    meta = {name: value for name, value in row.items() if name not in KNOWN_KEYS}
    return Record(
        id=take_id(row, "question_id", where) or take_id(row, "id", where) or default_id,
        images=tuple(images),
        turns=(
            Turn("user", "\n".join([IMAGE_MARKER] * len(images) + [question])),
            Turn("assistant", Counter(answers).most_common(1)[0][0] if answers else None),
        ),
        meta=meta | ({"answers": answers} if answers else {}),
        where=where,
    )


def _read_official(content: Row, path: Path, images_folder: Path) -> Iterator[Record]:
    """Read an official questions file. Pictures lie in ``images_folder`` or in a folder of the subtype's name there."""
    subtype = take(content, "data_subtype", (str,), str(path), "a text such as 'val2014'").replace("-dev", "")
    folder = images_folder / subtype if (images_folder / subtype).is_dir() else images_folder
    annotations = read_annotations(path)
    for number, question in enumerate(take(content, "questions", (list,), str(path), "a list of questions"), start=1):
        where = f"{path}, question {number}"
        if not isinstance(question, dict):
            raise DataError(f"{where}: expected an object {{'image_id', 'question', 'question_id'}}, got {question!r}.")
        question_id = take(question, "question_id", (int, str), where, "a number")
        if annotations and question_id not in annotations:
            raise DataError(f"{where}: the annotations file has no answers to question {question_id}.")
        image_id = take(question, "image_id", (int,), where, "a number")
        image = folder / f"COCO_{subtype}_{image_id:012d}.jpg"
        yield question_record(question | annotations.get(question_id, {}), [image], f"{path.stem}-{number}", where)


def read_annotations(questions: Path, path: Path | None = None) -> dict[Any, Row]:
    """Answers by question id: v2_OpenEnded_mscoco_..._questions.json has them in v2_mscoco_..._annotations.json, unless
    ``path`` says where; without that file there are none."""
    if path is None:
        path = questions.with_name(questions.name.replace("OpenEnded_", "").replace("questions", "annotations"))
        if path == questions or not path.is_file():
            return {}
    found: dict[Any, Row] = {}
    for _, where, content in read_rows(path):
        for number, row in enumerate(take(content, "annotations", (list,), where, "a list"), start=1):
            here = f"{path}, annotation {number}"
            if not isinstance(row, dict):
                raise DataError(f"{here}: expected an object, got {row!r}.")
            answers = take(row, "answers", (list,), here, "a list of {'answer'} objects")
            question_id = take(row, "question_id", (int, str), here, "a number")
            found[question_id] = row | {"answers": [take(one, "answer", (str,), here, "a text") for one in answers]}
    return found
