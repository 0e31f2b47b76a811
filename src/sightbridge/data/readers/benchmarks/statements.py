"""Statements about pictures that are true or not: XVNLI, and NLVR2 with its multicultural cousin MaRVL.

XVNLI:  {"gold_label": "neutral", "sentence2": "He reads.", "Flikr30kID": "759822302", "pairID": "759822302.jpg#2r1e"}
NLVR2:  {"identifier": "test1-0-1-0", "sentence": "The left image shows two dogs.", "label": "True", ...}
MaRVL:  {"id": "id-0", "caption": "Panci di ...", "concept": "39-Panci", "left_img": "39-0.jpg",
         "right_img": "39-11.jpg", "label": true, ...}

The publishers' files (github.com/e-bug/iglue, lil-lab/nlvr, marvl-challenge/marvl-code).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightbridge.data.readers.rows import Row, read_rows, take, take_id
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.text.turns import IMAGE_MARKER, Turn

ENTAILMENT = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
"""What a label is called in an answer (mBLIP, data preparation)."""
UNDECIDED = "-"
"""The label of pairs on which the annotators did not agree; they have no true answer."""


def read_xvnli(path: Path, images_folder: Path) -> Iterator[Record]:
    """Yield a record for every hypothesis; raises ``DataError`` naming file, row and key for a wrong row."""
    for number, where, row in read_rows(path):
        label = take(row, "gold_label", (str,), where, "entailment, neutral or contradiction")
        if label not in ENTAILMENT and label != UNDECIDED:
            known = ", ".join(ENTAILMENT)
            raise DataError(f"{where}, key 'gold_label': expected {known} or '{UNDECIDED}', got '{label}'.")
        image = images_folder / f"{take(row, 'Flikr30kID', (str,), where, 'the number of a picture')}.jpg"
        statement = take(row, "sentence2", (str,), where, "a text")
        id = take_id(row, "pairID", where) or f"{path.stem}-{number}"
        yield statement_record(id, [image], statement, ENTAILMENT.get(label), {"type": label}, where)


def read_nlvr2(path: Path, images_folder: Path) -> Iterator[Record]:
    """Yield a record with two pictures for every statement of NLVR2 or MaRVL; errors as ``read_xvnli``."""
    for number, where, row in read_rows(path):
        label = _truth(row, where)
        if "concept" in row:
            concept = take(row, "concept", (str,), where, "a folder's name")
            names = [f"{concept}/{take(row, key, (str,), where, 'a file name')}" for key in ("left_img", "right_img")]
            statement = take(row, "caption", (str,), where, "a text")
            id, meta = take_id(row, "id", where) or f"{path.stem}-{number}", {"type": row.get("chapter") or concept}
        else:
            id = take(row, "identifier", (str,), where, "a text such as test1-0-1-0")
            pair = id.rsplit("-", 1)[0]
            names = [f"{pair}-img0.png", f"{pair}-img1.png"]
            statement, meta = take(row, "sentence", (str,), where, "a text"), {}
        images = [_find(images_folder, name) for name in names]
        yield statement_record(id, images, statement, "yes" if label else "no", meta, where)


def statement_record(
    id: str, images: Sequence[Path], statement: str, answer: str | None, meta: dict[str, Any], where: str
) -> Record:
    """Make a record of a statement; without a true answer it waits for one."""
    return Record(
        id=id,
        images=tuple(images),
        turns=(Turn("user", "\n".join([IMAGE_MARKER] * len(images) + [statement])), Turn("assistant", answer)),
        meta=meta | ({"answers": [answer]} if answer else {}),
        where=where,
    )


def _truth(row: Row, where: str) -> bool:
    """MaRVL says true, NLVR2 "True"."""
    label = row.get("label")
    if not isinstance(label, bool) and label not in ("True", "False"):
        raise DataError(f"{where}, key 'label': expected true or false, got {label!r}.")
    return label in (True, "True")


def _find(folder: Path, name: str) -> Path:
    """MaRVL's folders carry names in Swahili, Tamil and Turkish, whose accents some archives store apart."""
    path = folder / name
    return path if path.exists() else folder / unicodedata.normalize("NFKD", name)
