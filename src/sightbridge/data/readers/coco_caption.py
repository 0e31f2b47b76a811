"""Caption rows in the form of LAVIS' COCO annotations (Karpathy split).

training:    {"image": "train2014/000001.jpg", "caption": "A red bus.", "image_id": "coco_1"}
evaluation:  {"image": "val2014/000002.jpg", "caption": ["A cat.", "A cat sleeps.", ...]}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sightbridge.data.readers.rows import find_image, read_rows, take, take_texts
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.text.turns import IMAGE_MARKER, Turn


def read_coco_caption(path: Path, images_folder: Path) -> Iterator[Record]:
    """Yield a record for every row of ``path``: a user turn with the picture alone, the caption as the answer.

    A row with a list of captions keeps them in ``meta["references"]``, and the first one is the answer too.
    ``meta["image_id"]`` is the row's ``image_id``, or the picture's file name. Raises ``DataError`` naming file, row
    and key for a row that is not in the format above.
    """
    for number, where, row in read_rows(path):
        name = take(row, "image", (str,), where, "a file name")
        captions = take_texts(row, "caption", where, "a caption or a list of captions")
        if not captions:
            raise DataError(f"{where}, key 'caption': expected at least one caption, got an empty list.")
        has_id = row.get("image_id") is not None
        image_id = str(take(row, "image_id", (str, int), where, "a text or a number")) if has_id else name
        references = captions if isinstance(row["caption"], list) else None
        yield Record(
            id=image_id if references else f"{image_id}-{number}",  # a picture comes once per caption in training
            images=(find_image(name, images_folder),),
            turns=(Turn("user", IMAGE_MARKER), Turn("assistant", captions[0])),
            meta={"image_id": image_id} | ({"references": references} if references else {}),
            where=where,
        )
