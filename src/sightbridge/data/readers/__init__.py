"""Annotation files: one reader per format, all of them yielding records.

A reader is a function ``(path, images_folder) -> Iterator[Record]``. Adding one is a file and a line in ``READERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from sightbridge.config.data import DataSettings, SourceSettings
from sightbridge.data.readers.coco_caption import read_coco_caption
from sightbridge.data.readers.llava import read_llava
from sightbridge.data.record import Record
from sightbridge.errors import SettingsError, nearest

Reader = Callable[[Path, Path], Iterator[Record]]

READERS: dict[str, Reader] = {
    "llava": read_llava,
    "coco_caption": read_coco_caption,
}


def get_reader(name: str) -> Reader:
    """Return the reader called ``name``; raises ``SettingsError`` with the known names."""
    if name not in READERS:
        known = ", ".join(READERS)
        raise SettingsError(
            f"unknown data format '{name}'. Known: {known}.{nearest(name, list(READERS))}", key="format"
        )
    return READERS[name]


def read_sources(data: DataSettings, which: Literal["train", "validation"]) -> list[Record]:
    """Read all sources of ``data.train`` or ``data.validation``, one after the other.

    Paths are relative to ``data.root`` ("~" is expanded), and pictures without a folder of their own are too. Raises
    ``DataError`` for the first row that is wrong.
    """
    root = Path(data.root).expanduser()
    return [record for source in getattr(data, which) for record in _read_source(source, root)]


def _read_source(source: SourceSettings, root: Path) -> Iterator[Record]:
    records = get_reader(source.format)(root / source.path, root / (source.images or "."))
    return islice(records, source.limit)
