"""LLaVA's conversation rows (haotian-liu/LLaVA; also ViP-LLaVA's ordinary rows and CLIP-FlanT5's).

    {"id": "000001", "image": "coco/train2017/000001.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A bus."}]}

``image`` may be a list, or absent for a row of text alone; ``id`` may be a number, or absent (then the row's number).
``language`` is the code of the row's language (else ``en``); all other keys are kept in ``meta``.
Every turn is kept as it is, a first turn from ``gpt`` included: what a template cannot say, it refuses itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightbridge.data.readers.rows import Row, find_image, read_rows, take, take_id, take_texts
from sightbridge.data.record import Record
from sightbridge.errors import DataError, nearest
from sightbridge.images.load import ImageSource
from sightbridge.text.turns import IMAGE_MARKER, Role, Turn

KNOWN_KEYS = ("id", "image", "conversations", "language")
ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}


def read_llava(path: Path, images_folder: Path) -> Iterator[Record]:
    """Yield a record for every row of ``path``; relative pictures are looked up in ``images_folder``.

    Raises ``DataError`` naming file, row and key for a row that is not in the format above, or whose number of
    ``<image>`` markers differs from its number of pictures.
    """
    for number, where, row in read_rows(path):
        has_image = row.get("image") is not None
        names = take_texts(row, "image", where, "a file name or a list of them") if has_image else []
        images = [find_image(name, images_folder) for name in names]
        yield conversation_record(row, images, f"{path.stem}-{number}", where)


def conversation_record(row: Row, images: Sequence[ImageSource], default_id: str, where: str) -> Record:
    """Make a record of a row with ``conversations``, whose pictures were found already."""
    record = Record(
        id=take_id(row, "id", where) or default_id,
        images=tuple(images),
        turns=_read_turns(row, where),
        language=take(row, "language", (str,), where, "a language code") if "language" in row else "en",
        meta={key: value for key, value in row.items() if key not in KNOWN_KEYS},
        where=where,
    )
    if record.count_markers() != len(record.images):
        raise DataError(
            f"{where}: the number of pictures in 'image' is {len(record.images)}, that of '{IMAGE_MARKER}' markers "
            f"in 'conversations' is {record.count_markers()}. Give one marker for every picture."
        )
    return record


def _read_turns(row: Row, where: str) -> tuple[Turn, ...]:
    messages = take(row, "conversations", (list,), where, "a list of {'from', 'value'} objects")
    if not messages:
        raise DataError(f"{where}, key 'conversations': expected at least one turn, got an empty list.")
    return tuple(_read_turn(message, f"{where}, turn {n}") for n, message in enumerate(messages, start=1))


def _read_turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise DataError(f"{where}: expected an object {{'from', 'value'}}, got {message!r}.")
    speaker = take(message, "from", (str,), where, f"one of {', '.join(ROLES)}")
    if speaker not in ROLES:
        known = ", ".join(ROLES)
        raise DataError(
            f"{where}, key 'from': expected one of {known}, got '{speaker}'.{nearest(speaker, list(ROLES))}"
        )
    return Turn(ROLES[speaker], take(message, "value", (str,), where, "a text"))
