"""WebDataset tars: the files of a sample stand side by side and share a name up to the first dot.

    000001.jpg  000001.txt                     a caption
    000002.jpg  000002.json                    {"caption": ...}, as LAION has it, or {"question": ..., "answer": ...}
    000003.png  000003.json                    {"conversations": [...]}, LLaVA's, with <image> markers
    000004.1.jpg  000004.2.jpg  000004.json    several pictures, in the order they stand in
    000005.webp  000005.cls                    a class, as the answer

Only headers are read to begin with, so every sample is known and can be reached directly: shuffling is over all
samples, not over a buffer, and a run resumes exactly where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sightbridge.data.readers.content import CONTENT_KEYS, content_record
from sightbridge.data.readers.patterns import expand_pattern
from sightbridge.data.readers.rows import Row
from sightbridge.data.readers.tar_index import read_tar_index
from sightbridge.data.record import Record
from sightbridge.data.records import LazyRecords
from sightbridge.errors import DataError
from sightbridge.images.load import FileSlice

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")
TEXTS = ("json", "txt", "cls")
MAX_TEXT = 4 * 2**20
"""Bound on one sample's json, txt or cls, in bytes."""


class Sample(NamedTuple):
    """One sample: which tar it is in, what it is called there, and where its fields are: (field, offset, size)."""

    tar: int
    key: str
    fields: tuple[tuple[str, int, int], ...]


def read_webdataset(path: Path, images_folder: Path) -> WebDataset:
    """Index the tars that ``path`` names (see ``expand_pattern``); ``images_folder`` is not used.

    Raises ``DataError`` for a tar that is missing, compressed, damaged or cut off, and for one without samples. A
    sample that says nothing is a ``DataError`` when it is looked at.
    """
    return WebDataset(expand_pattern(path))


class WebDataset(LazyRecords):
    """The samples of all ``tars``, in order; about half a kilobyte of memory for each."""

    def __init__(self, tars: list[Path]) -> None:
        self.tars = tars
        self.samples = [sample for number, tar in enumerate(tars) for sample in _find_samples(number, tar)]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Record:
        """Make the record of sample ``index``; raises ``DataError`` for one that says nothing."""
        sample = self.samples[index]
        tar = self.tars[sample.tar]
        where = f"{tar}, sample '{sample.key}'"
        images = [
            FileSlice(tar, offset, size, f"{sample.key}.{field}")
            for field, offset, size in sample.fields
            if field.rpartition(".")[2] in IMAGES
        ]
        texts = {
            field: _read_text(tar, offset, size, f"{where}, '{field}'")
            for field, offset, size in sample.fields
            if field in TEXTS
        }
        return content_record(_make_row(texts, where), images, sample.key, where)


def _find_samples(number: int, tar: Path) -> Iterator[Sample]:
    """Group the files of a tar by name; those without a dot, or hidden (".DS_Store"), belong to no sample."""
    key, fields, found = None, [], False
    for member in read_tar_index(tar):
        folder, slash, base = member.name.rpartition("/")
        stem, dot, field = base.partition(".")
        if not (stem and dot):
            continue
        found = True
        if folder + slash + stem != key:
            if key is not None:
                yield Sample(number, key, tuple(fields))
            key, fields = folder + slash + stem, []
        field = field.lower()
        if any(field == other for other, _, _ in fields):
            raise DataError(f"{tar}: sample '{key}' has two files '{field}'. Every sample needs a name of its own.")
        fields.append((field, member.offset, member.size))
    if not found:
        raise DataError(f"{tar}: holds no samples. Expected files such as 000001.jpg and 000001.txt, side by side.")
    assert key is not None, "a file was found"
    yield Sample(number, key, tuple(fields))


def _read_text(tar: Path, offset: int, size: int, where: str) -> str:
    if size > MAX_TEXT:
        raise DataError(f"{where}: has {size:,} bytes, more than the limit of {MAX_TEXT:,}.")
    try:
        with tar.open("rb") as file:
            file.seek(offset)
            return file.read(size).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{tar}: cannot read the tar file: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 text ({error.reason} at byte {error.start}).") from error


def _make_row(texts: dict[str, str], where: str) -> Row:
    """Put a sample's texts together: what its json says, else its txt, else its class."""
    row = _parse(texts["json"], f"{where}, 'json'") if "json" in texts else {}
    if not any(key in row for key in CONTENT_KEYS) and (text := texts.get("txt", texts.get("cls"))) is not None:
        row["text"] = text.strip()
    return row | ({"class": texts["cls"].strip()} if "cls" in texts else {})


def _parse(text: str, where: str) -> Row:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}, line {error.lineno}: broken JSON: {error.msg}.") from error
    except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
        raise DataError(f"{where}: broken JSON: {error}.") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object {{...}}.")
    return {key: value for key, value in row.items() if value is not None}
