"""mBLIP's rows (gregor-ge/mBLIP): a whole prompt, what is to be answered, and one picture or two.

    training:    {"context": "Caption the image in German.", "label": "Ein roter Bus.", "image_id": "000001.jpg"}
    evaluation:  {"context": "How many?", "label": "", "text_label": ["2", "two"], "image_id": "000002"}
    two images:  {"context": "Both are red.", "label": "yes", "left_image": "a.jpg", "right_image": "b.jpg"}

``language`` is the code of the row's language (else ``en``). ``sightbridge data mix`` writes such rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sightbridge.data.readers.row_index import index_records
from sightbridge.data.readers.rows import Row, find_image, take, take_id, take_texts
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.images.load import ENDINGS, ImageSource
from sightbridge.text.turns import IMAGE_MARKER, Turn

KNOWN_KEYS = ("context", "label", "left_image", "right_image", "language")
IMAGE_KEYS = ("image_id", "left_image", "right_image")


def read_mblip(path: Path, images_folder: Path) -> Sequence[Record]:
    """Read every row of ``path`` as a user turn with the pictures and the context, and the label as the answer.

    Rows are checked at once. Those of files with a line for each, as ``sightbridge data mix`` writes them, are not held
    in memory but read again when they are looked at.

    An empty ``label`` waits for an answer. ``text_label`` (a text, a list of texts, or true and false, which mean yes
    and no) becomes ``meta["answers"]``; every other key is kept in ``meta`` as it is. Raises ``DataError`` naming file,
    row and key for a row that is not in the format above.
    """
    return index_records(path, partial(_make_record, images_folder=images_folder, stem=path.stem))


def _make_record(row: Row, number: int, where: str, *, images_folder: Path, stem: str) -> Record:
    return mblip_record(row, images_folder, f"{stem}-{number}", where)


def mblip_record(row: Row, images_folder: Path, default_id: str, where: str) -> Record:
    """Make a record of one of mBLIP's rows; arguments and errors as for ``read_mblip``."""
    context = take(row, "context", (str,), where, "a text")
    if IMAGE_MARKER in context:
        raise DataError(
            f"{where}, key 'context': holds '{IMAGE_MARKER}'. Pictures are given by {' or '.join(IMAGE_KEYS)}."
        )
    images = _find_images(row, images_folder, where)
    label = _yes_or_no(row, "label", where) if "label" in row else ""
    answers = _answers(row, where)
    meta = {key: value for key, value in row.items() if key not in KNOWN_KEYS}
    return Record(
        id=take_id(row, "id", where) or default_id,
        images=images,
        turns=(Turn("user", "\n".join([IMAGE_MARKER] * len(images) + [context])), Turn("assistant", label or None)),
        language=take(row, "language", (str,), where, "a language code") if "language" in row else "en",
        meta=meta | ({"answers": answers} if answers else {}),
        where=where,
    )


def _find_images(row: Row, folder: Path, where: str) -> tuple[ImageSource, ...]:
    keys = [key for key in IMAGE_KEYS if row.get(key) is not None]
    if keys not in (["image_id"], ["left_image", "right_image"]):
        raise DataError(
            f"{where}: expected 'image_id', or 'left_image' and 'right_image', got {', '.join(keys) or 'none of them'}."
        )
    names = [str(take(row, key, (str, int), where, "the name of a picture")) for key in keys]
    # XM3600's and Flickr30k's rows name pictures without an ending, and mean .jpg (mBLIP's image_suffix)
    named = (name if name.startswith("data:") or name.lower().endswith(ENDINGS) else f"{name}.jpg" for name in names)
    return tuple(find_image(name, folder) for name in named)


def _answers(row: Row, where: str) -> list[str]:
    if isinstance(row.get("text_label"), list):
        return take_texts(row, "text_label", where, "an answer or a list of answers")
    answer = _yes_or_no(row, "text_label", where) if "text_label" in row else ""
    return [answer] if answer else []


def _yes_or_no(row: Row, key: str, where: str) -> Any:
    """A text; NLVR2's and MaRVL's true and false are yes and no, as mBLIP's ``target2str`` has them."""
    if isinstance(row[key], bool):
        return "yes" if row[key] else "no"
    return take(row, key, (str,), where, "a text")
