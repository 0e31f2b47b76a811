"""Annotation files: one reader per format, all of them yielding records.

A reader is a function ``(path, images_folder)`` that yields records, or returns a list of them that is read lazily;
one of ``VIDEO_FORMATS`` also takes ``frames``, one of ``REGION_FORMATS`` ``regions``. Adding one is a file and a line
in ``READERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from sightbridge.config.data import DataSettings, SourceSettings
from sightbridge.data.readers.coco_caption import read_coco_caption
from sightbridge.data.readers.gqa import read_gqa
from sightbridge.data.readers.llava import read_llava
from sightbridge.data.readers.mblip import read_mblip
from sightbridge.data.readers.minigpt4qwen import read_minigpt4qwen
from sightbridge.data.readers.paddlemix import read_paddlemix
from sightbridge.data.readers.tables import read_arrow, read_jsonl, read_parquet
from sightbridge.data.readers.vip_llava import FIDELITIES, read_vip_llava
from sightbridge.data.readers.vqa import read_vqa
from sightbridge.data.readers.webdataset import read_webdataset
from sightbridge.data.record import Record
from sightbridge.data.records import Chained, Cleaned, Prompted, select
from sightbridge.errors import SettingsError, nearest
from sightbridge.text.cleanup import CLEANUPS

Reader = Callable[..., Iterable[Record]]

READERS: dict[str, Reader] = {
    "llava": read_llava,
    "coco_caption": read_coco_caption,
    "vg_caption": read_coco_caption,
    "paddlemix": read_paddlemix,
    "vqa": read_vqa,
    "gqa": read_gqa,
    "mblip": read_mblip,
    "minigpt4qwen": read_minigpt4qwen,
    "vip_llava": read_vip_llava,
    "webdataset": read_webdataset,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "jsonl": read_jsonl,
}
VIDEO_FORMATS = ("minigpt4qwen",)
"""Formats whose rows may hold videos."""
REGION_FORMATS = ("vip_llava",)
"""Formats whose rows may be about parts of pictures."""


def get_reader(name: str) -> Reader:
    """Return the reader called ``name``; raises ``SettingsError`` with the known names."""
    if name not in READERS:
        known = ", ".join(READERS)
        raise SettingsError(
            f"unknown data format '{name}'. Known: {known}.{nearest(name, list(READERS))}", key="format"
        )
    return READERS[name]


def read_sources(data: DataSettings, which: Literal["train", "validation"]) -> Chained:
    """Read all sources of ``data.train`` or ``data.validation``, one after the other.

    Tars and tables are read where they are looked at; the rest is held in memory. Paths are relative to ``data.root``
    ("~" is expanded), and pictures without a folder of their own are too. Raises ``DataError`` for the first row that
    is wrong, or, in a tar or a table, when the row is looked at.
    """
    root = Path(data.root).expanduser()
    return Chained([read_source(source, root) for source in getattr(data, which)])


def read_source(source: SourceSettings, root: Path) -> Sequence[Record]:
    """Read one source; arguments and errors as for ``read_sources``."""
    path, images = root / source.path, root / (source.images or ".")
    return load_records(
        source.format,
        path,
        images,
        clean=source.clean,
        skip=source.skip,
        limit=source.limit,
        prompt=source.prompt,
        frames=source.frames,
        regions=source.regions,
    )


def load_records(
    format: str,
    path: str | Path,
    images: str | Path | None = None,
    *,
    clean: str | None = None,
    skip: int = 0,
    limit: int | None = None,
    prompt: str | None = None,
    frames: int | None = None,
    regions: str | None = None,
) -> Sequence[Record]:
    """Read an annotation file, to look at its records: ``print(load_records("coco_caption", "train.json")[0])``.

    Args:
        format: name of a reader (see ``READERS``).
        path: annotation file, tar or table; of the latter two a pattern such as ``shard-{000..099}.tar`` too.
        images: folder of the pictures; by default the one that ``path`` is in.
        clean: clean-up of the texts (see ``sightbridge.text.cleanup``).
        skip: leave out the first so many records.
        limit: read only so many records, behind those left out.
        prompt: what the user says behind the pictures, with ``{}`` for the words of the record.
        frames: pictures of each video, if not as many as the reader takes by itself.
        regions: of data about parts of pictures: "corrected" (the default), or "exact", with the original's slips.

    Raises:
        SettingsError: unknown format or clean-up, or one of ``frames`` and ``regions``, or ``clean`` and ``prompt``,
            of a format that has no use for it.
        DataError: a row is wrong.
    """
    path = Path(path).expanduser()
    if clean is not None and clean not in CLEANUPS:
        known = ", ".join(CLEANUPS)
        raise SettingsError(f"unknown clean-up '{clean}'. Known: {known}.{nearest(clean, list(CLEANUPS))}", "clean")
    reader = get_reader(format)
    options = {key: value for key, value in {"frames": frames, "regions": regions}.items() if value is not None}
    if frames is not None and format not in VIDEO_FORMATS:
        known = ", ".join(VIDEO_FORMATS)
        raise SettingsError(f"'frames' are of videos, which '{format}' does not have. Formats with videos: {known}.")
    if regions is not None and format not in REGION_FORMATS:
        known = ", ".join(REGION_FORMATS)
        raise SettingsError(f"'regions' are of data about parts of pictures, which '{format}' is not, but {known} is.")
    if regions is not None and regions not in FIDELITIES:
        known = ", ".join(FIDELITIES)
        raise SettingsError(f"unknown 'regions' '{regions}'. Known: {known}.{nearest(regions, list(FIDELITIES))}")
    if (clean or prompt) and format in REGION_FORMATS:
        raise SettingsError(f"the texts of '{format}' are drawn anew in every epoch: leave out 'clean' and 'prompt'.")
    found = reader(path, path.parent if images is None else Path(images).expanduser(), **options)
    end = None if limit is None else skip + limit
    if isinstance(found, Sequence):
        records = select(found, range(len(found))[skip:end])
    else:
        records = list(islice(found, skip, end))
    cleaned = Cleaned(records, clean) if clean else records
    return Prompted(cleaned, prompt) if prompt else cleaned
