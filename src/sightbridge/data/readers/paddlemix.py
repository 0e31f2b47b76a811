"""Caption rows as PaddleMIX's ``load_dataset("coco_caption", data_files=[[IMAGES, ANNOTATION, MODE]])`` takes them.

    {"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "A woman cutting a cake.", "image_id": "coco_522418"}

IMAGES is the source's ``images`` and ANNOTATION its ``path``. There is no MODE: what is trained on keeps its captions,
and what is answered leaves them out by itself. The rows are those of ``coco_caption``, with two additions:
``caption`` may be missing, and pictures are numbered as PaddleMIX numbers them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sightbridge.data.readers.coco_caption import caption_record
from sightbridge.data.readers.rows import find_image, read_rows, take, take_id
from sightbridge.data.record import Record
from sightbridge.text.turns import IMAGE_MARKER, Turn


def read_paddlemix(path: Path, images_folder: Path) -> Iterator[Record]:
    """Yield a record for every row of ``path``; without a caption it waits for an answer.

    ``meta["image_id"]`` is the row's own, as text, or else the number at the end of the picture's name (522418 above;
    PaddleMIX takes characters off both ends instead and so turns ``jpgpic.jpg`` into "ic"). ``meta["image_index"]``
    counts pictures from 0 in the order they first appear, which is what PaddleMIX shows as ``image_id`` in training.
    Raises ``DataError`` naming file, row and key for a row that is not in the format above.
    """
    indices: dict[str, int] = {}
    for number, where, row in read_rows(path):
        name = take(row, "image", (str,), where, "a file name")
        image_id = take_id(row, "image_id", where) or _id_in_name(name)
        meta = {"image_id": image_id, "image_index": indices.setdefault(image_id, len(indices))}
        images, record_id = (find_image(name, images_folder),), f"{image_id}-{number}"
        if row.get("caption") is None:
            turns = (Turn("user", IMAGE_MARKER), Turn("assistant", None))
            yield Record(record_id, images, turns, meta=meta, where=where)
        else:
            yield caption_record(row, "caption", images, id=record_id, meta=meta, where=where)


def _id_in_name(name: str) -> str:
    stem = Path(name).stem
    digits = re.search(r"\d+$", stem)
    return str(int(digits[0])) if digits else stem
