"""Caption rows in the form of LAVIS' annotations: COCO's (Karpathy split) and Visual Genome's.

training:    {"image": "train2014/000001.jpg", "caption": "A red bus.", "image_id": "coco_1"}
evaluation:  {"image": "val2014/000002.jpg", "caption": ["A cat.", "A cat sleeps.", ...]}

Visual Genome's rows are of the first kind and have no ``image_id``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightbridge.data.readers.rows import Row, find_image, read_rows, take, take_id, take_texts
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.images.load import ImageSource
from sightbridge.text.turns import IMAGE_MARKER, Turn


def read_coco_caption(path: Path, images_folder: Path) -> Iterator[Record]:
    """Yield a record for every row of ``path``: a user turn with the picture alone, the caption as the answer.

    A row with a list of captions keeps them in ``meta["references"]``, and the first one is the answer too.
    ``meta["image_id"]`` is the row's ``image_id``, or the picture's file name. Raises ``DataError`` naming file, row
    and key for a row that is not in the format above.
    """
    for number, where, row in read_rows(path):
        name = take(row, "image", (str,), where, "a file name")
        image_id = take_id(row, "image_id", where) or name
        several = isinstance(row.get("caption"), list)
        yield caption_record(
            row,
            "caption",
            [find_image(name, images_folder)],
            id=image_id if several else f"{image_id}-{number}",  # a picture comes once per caption in training
            meta={"image_id": image_id},
            where=where,
        )


def caption_record(
    row: Row, key: str, images: Sequence[ImageSource], *, id: str, meta: dict[str, Any], where: str
) -> Record:
    """Make a record of a row whose ``key`` holds a caption, or a list of captions that become references too."""
    captions = take_texts(row, key, where, "a caption or a list of captions")
    if not captions:
        raise DataError(f"{where}, key '{key}': expected at least one caption, got an empty list.")
    return Record(
        id=id,
        images=tuple(images),
        turns=(Turn("user", IMAGE_MARKER * len(images)), Turn("assistant", captions[0])),
        meta=meta | ({"references": captions} if isinstance(row[key], list) else {}),
        where=where,
    )
