"""Rows that come with their pictures (samples in tars, rows of tables): what their keys are decides what they say."""

from __future__ import annotations

from collections.abc import Sequence

from sightbridge.data.readers.coco_caption import caption_record
from sightbridge.data.readers.llava import conversation_record
from sightbridge.data.readers.rows import Row, take_id
from sightbridge.data.readers.vqa import question_record
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.images.load import ImageSource

CAPTION_KEYS = ("caption", "text")
CONTENT_KEYS = ("conversations", "question", *CAPTION_KEYS)
"""What a row may say, the first of them that it has."""


def content_record(row: Row, images: Sequence[ImageSource], default_id: str, where: str) -> Record:
    """Make a record of a row with ``conversations`` (LLaVA's), or ``question`` (and ``answer``), or ``caption`` or
    ``text``: the first of these that it has. Other keys are kept in ``meta``.

    Raises ``DataError`` for a row with none of them, or with a question or caption and no picture.
    """
    if "conversations" in row:
        return conversation_record(row, images, default_id, where)
    if not images:
        raise DataError(f"{where}: has no picture. Only rows with 'conversations' may be text alone.")
    if "question" in row:
        return question_record(row, images, default_id, where)
    key = next((key for key in CAPTION_KEYS if key in row), None)
    if key is None:
        raise DataError(
            f"{where}: expected one of 'conversations', 'question' (and 'answer'), 'caption' or 'text'. "
            f"The row has: {', '.join(row) or '-'}."
        )
    meta = {name: value for name, value in row.items() if name not in (key, "id")}
    return caption_record(row, key, images, id=take_id(row, "id", where) or default_id, meta=meta, where=where)
