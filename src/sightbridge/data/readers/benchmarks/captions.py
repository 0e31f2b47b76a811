"""Pictures with several captions each: the Karpathy splits, NoCaps, Flickr30k in many languages, Crossmodal-3600.

Karpathy:   {"images": [{"filename": "x.jpg", "filepath": "val2014", "split": "test", "cocoid": 1,
             "sentences": [{"raw": "A bus."}, ...]}, ...]}
NoCaps:     {"images": [{"id": 0, "file_name": "x.jpg", "domain": "near-domain"}, ...],
             "annotations": [{"image_id": 0, "caption": "A bus."}, ...]}
xFlickrCO:  {"id": "1007129816", "img_path": "1007129816.jpg", "sentences": ["Der Mann ...", ...]}, one per line
XM3600:     {"image/key": "0a0a", "de": {"caption": ["Ein Bus.", ...], ...}, ...}, one per line
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightbridge.data.readers.rows import Row, read_rows, take, take_id, take_texts
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.text.turns import IMAGE_MARKER, Turn


def read_karpathy(path: Path, images_folder: Path, split: str = "test") -> Iterator[Record]:
    """Yield a record for every picture of a split (``restval`` is a split of its own).

    Raises ``DataError`` naming file, row and key for a wrong row, and if the file has no such split.
    """
    seen: dict[str, int] = defaultdict(int)
    for where, row in _listed(path, "images"):
        own = take(row, "split", (str,), where, "the name of a split")
        seen[own] += 1
        if own != split:
            continue
        name = take(row, "filename", (str,), where, "a file name")
        folder = take(row, "filepath", (str,), where, "a folder's name") if "filepath" in row else ""
        sentences = take(row, "sentences", (list,), where, "a list of {'raw'} objects")
        captions = [take(_object(one, where), "raw", (str,), where, "a text") for one in sentences]
        id = take_id(row, "cocoid", where) or name
        yield _captioned(id, images_folder / folder / name, captions, {"image_id": row.get("cocoid", name)}, where)
    if split not in seen:
        there = ", ".join(f"{name} ({count})" for name, count in seen.items())
        raise DataError(f"{path}: has no split '{split}'; it has {there or 'no pictures'}.")


def read_nocaps(path: Path, images_folder: Path) -> Iterator[Record]:
    """Yield a record for every picture; ``meta["type"]`` is its domain. Errors as ``read_karpathy``."""
    captions: dict[Any, list[str]] = defaultdict(list)
    for where, row in _listed(path, "annotations"):
        image_id = take(row, "image_id", (int, str), where, "a number")
        captions[image_id].append(take(row, "caption", (str,), where, "a text"))
    for where, row in _listed(path, "images"):
        image_id = take(row, "id", (int, str), where, "a number")
        name = take(row, "file_name", (str,), where, "a file name")
        meta = {"image_id": image_id, "type": row["domain"]} if "domain" in row else {"image_id": image_id}
        if image_id not in captions:
            raise DataError(f"{where}: picture {image_id} has no captions among the annotations.")
        yield _captioned(str(image_id), images_folder / name, captions[image_id], meta, where)


def read_flickr(path: Path, images_folder: Path) -> Iterator[Record]:
    """Yield a record for every line of xFlickrCO, whose COCO half is in the same folder; errors as above."""
    for _, where, row in read_rows(path):
        name = take(row, "img_path", (str,), where, "a file name")
        captions = take_texts(row, "sentences", where, "a list of captions")
        yield _captioned(take_id(row, "id", where) or name, images_folder / name, captions, {}, where)


def read_xm3600(path: Path, images_folder: Path, language: str = "en") -> Iterator[Record]:
    """Yield a record for every picture, with its captions in one language; errors as above."""
    for _, where, row in read_rows(path):
        key = take(row, "image/key", (str,), where, "the name of a picture")
        own = take(row, language, (dict,), where, f"the captions in '{language}'")
        captions = take_texts(own, "caption", f"{where}, key '{language}'", "a list of captions")
        meta = {"type": row["image/locale"]} if "image/locale" in row else {}
        yield _captioned(key, images_folder / f"{key}.jpg", captions, meta, where)


def _captioned(id: str, image: Path, captions: Sequence[str], meta: dict[str, Any], where: str) -> Record:
    if not captions:
        raise DataError(f"{where}: the picture has no caption.")
    turns = (Turn("user", IMAGE_MARKER), Turn("assistant", captions[0]))
    return Record(id, (image,), turns, meta=meta | {"references": list(captions)}, where=where)


def _listed(path: Path, key: str) -> Iterator[tuple[str, Row]]:
    """The objects of the list ``key`` of a file that is one object."""
    for _, where, content in read_rows(path):
        for number, row in enumerate(take(content, key, (list,), where, f"the list of {key}"), start=1):
            here = f"{path}, {key} {number}"
            yield here, _object(row, here)


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object {{...}}, got {value!r}.")
    return value
