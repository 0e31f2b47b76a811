"""Questions of GQA, and of xGQA, which has the same files in other languages.

as in LAVIS:  {"image": "2354786.jpg", "question": "Is it blue?", "answer": "yes", "question_id": "20902594"}
official:     {"20902594": {"imageId": "2354786", "question": "Is it blue?", "answer": "yes", ...}, ...}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sightbridge.data.readers.rows import Row, find_image, read_rows, take
from sightbridge.data.readers.vqa import question_record
from sightbridge.data.record import Record

OFFICIAL_META = ("imageId", "fullAnswer", "types", "isBalanced")
"""Kept of an official row; its scene-graph program and lists of related questions are many times longer."""


def read_gqa(path: Path, images_folder: Path) -> Iterator[Record]:
    """Yield a record for every question in ``path``; without an answer it waits for one.

    Raises ``DataError`` naming file, row and key for a row that is in neither of the formats above.
    """
    for number, where, row in read_rows(path):
        if row and all(isinstance(value, dict) for value in row.values()):
            yield from _read_official(row, path, images_folder)
            continue
        name = take(row, "image", (str,), where, "a file name")
        yield question_record(row, [find_image(name, images_folder)], f"{path.stem}-{number}", where)


def _read_official(content: dict[str, Row], path: Path, images_folder: Path) -> Iterator[Record]:
    for question_id, row in content.items():
        where = f"{path}, question '{question_id}'"
        image = images_folder / f"{take(row, 'imageId', (str,), where, 'a text')}.jpg"
        kept = {key: row[key] for key in ("question", "answer", *OFFICIAL_META) if key in row}
        yield question_record(kept | {"question_id": question_id}, [image], question_id, where)
