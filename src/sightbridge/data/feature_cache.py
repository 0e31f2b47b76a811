"""Features of pictures on disk, under a key that says exactly what they are features of.

FOLDER/hashes-0.jsonl              SHA-256 of picture files, by path, size and time
FOLDER/3f2a.../key.json            what the features were made with
FOLDER/3f2a.../77b0....safetensors features and the entries' names, see ``feature_shards``
FOLDER/3f2a.../bad-0.jsonl         pictures that could not be opened

An entry's name is the hash of its picture's content and what was drawn for the view, a crop or marks: a changed
picture, another crop or another seed is another entry, and two files with one content are one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from torch import Tensor

from sightbridge.config.base import Settings
from sightbridge.config.data import CacheDtype
from sightbridge.config.load import write_atomically
from sightbridge.data.feature_shards import SUFFIX, open_shard, read_entries, read_row
from sightbridge.data.feature_store import FeatureStore, View, Views, from_dtype
from sightbridge.data.picture_hashes import PictureHashes, read_lines
from sightbridge.errors import DataError, ImageError
from sightbridge.images.load import describe_source

KEY = "key.json"
VERSION = 1
"""Grows whenever features of an older release could not be read rightly."""


class CacheKey(Settings):
    """What features depend on, besides their pictures. Two runs with equal keys share their features."""

    version: int = VERSION
    prefix: str = Field(description="what of the model the features have behind them")
    weights: dict[str, str] = Field(description="SHA-256 of the weights of each part in the prefix")
    parts: dict[str, Any] = Field(description="settings of each part in the prefix, but for where its weights lie")
    image: dict[str, Any] = Field(description="how pictures become pixels, without augmentation")
    precision: str = Field(description="of the computation")
    dtype: CacheDtype = Field(description="of what is stored")

    @property
    def folder(self) -> str:
        """Name of the folder inside the cache: a hash of everything above."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def differences(self, other: CacheKey) -> list[str]:
        """What is not the same in two keys, in words: ``image.size is 224, not 364``; ``other`` is what is wanted."""
        ours, wanted = (dict(_flatten(key.model_dump(mode="json"))) for key in (self, other))
        found = []
        for name in [*ours, *(name for name in wanted if name not in ours)]:
            here, there = ours.get(name), wanted.get(name)
            if here != there:
                part = name.removeprefix("weights.").replace("_", " ")
                other_weights = f"the weights of the {part} are others"
                found.append(other_weights if name.startswith("weights.") else f"{name} is {here}, not {there}")
        return found


class FeatureCache(FeatureStore):
    """The features of one key. Made once per process; looked up in the processes that prepare batches.

    Only the headers of the shards are read when it is opened; a look-up maps its shard into memory and reads one row.
    """

    def __init__(self, folder: Path, key: CacheKey, views: Views, hashes: PictureHashes | None = None) -> None:
        super().__init__(views, key.prefix)
        self.key = key
        self.folder = folder / key.folder
        self.hashes = hashes or PictureHashes(folder)
        self._shards: list[Path] = []
        self._open: dict[int, Any] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._bad: dict[str, str] = {}
        self.reload()

    def reload(self) -> None:
        """Find out what is there. Raises ``DataError`` for a damaged shard."""
        self._shards = sorted(self.folder.glob(f"[!.]*{SUFFIX}"))
        self._open.clear()
        for number, path in enumerate(self._shards):
            for row, entry in enumerate(read_entries(open_shard(path))):
                self._places[entry] = number, row
        for path in sorted(self.folder.glob("bad-*.jsonl")):
            self._bad.update({line["entry"]: line["reason"] for line in read_lines(path)})

    def entry(self, view: View) -> str:
        """The name of a view's features. Raises ``ImageError`` if the picture is not there."""
        content = self.hashes.of(view.source)
        return f"{content}/{view.name}" if view.name else content

    def entries(self, wanted: Iterable[View]) -> dict[str, View]:
        """The distinct views among ``wanted``, by entry, without those of files that are not there."""
        found: dict[str, View] = {}
        for view in wanted:
            with suppress(ImageError):  # raised again, and counted, where the view is looked up
                found.setdefault(self.entry(view), view)
        return found

    def missing(self, entries: Mapping[str, View]) -> dict[str, View]:
        """Those of ``entries`` that are still to be made; a picture that cannot be opened needs not be tried again."""
        return {entry: view for entry, view in entries.items() if entry not in self._places and entry not in self._bad}

    def __contains__(self, view: View) -> bool:
        return self.entry(view) in self._places

    def __getitem__(self, view: View) -> Tensor:
        entry = self.entry(view)
        if entry in self._bad:
            raise ImageError(self._bad[entry])
        number, row = self._places[entry]
        if number not in self._open:
            self._open[number] = open_shard(self._shards[number])
        return from_dtype(*read_row(self._open[number], row))

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind: every worker opens its own."""
        return self.__dict__ | {"_open": {}}


def open_cache(folder: Path, key: CacheKey, views: Views, wanted: Iterable[View], command: str) -> FeatureCache:
    """Open the features of ``key`` for a run that will look up ``wanted``.

    Raises ``DataError``, saying what differs or is missing and how it is made, unless every one of them is there.
    """
    check_cache_folder(folder, key, command)
    cache = FeatureCache(folder, key, views)
    missing = cache.missing(cache.entries(wanted))
    if missing:
        names = ", ".join(describe_source(view.source) for view in list(missing.values())[:3])
        what = "pictures" if views.stored is None else "views of pictures"
        raise DataError(
            f"{cache.folder}: features of {len(missing):,} {what} are missing, such as {names}. Make them: {command}"
        )
    return cache


def check_cache_folder(folder: Path, key: CacheKey, command: str, with_weights: bool = True) -> None:
    """Check that a cache holds features of ``key`` at all; ``with_weights=False`` before the weights are known.

    Raises ``DataError`` that names what the nearest features there were made with instead.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such feature cache. Make it: {command}")
    keys = [read_key(path) for path in key_folders(folder)]
    differences = [found.differences(key) for found in keys]
    if not with_weights:
        differences = [[text for text in texts if not text.startswith("the weights")] for texts in differences]
    if not differences:
        raise DataError(f"{folder}: there are no features in it yet. Make them: {command}")
    fewest = min(differences, key=len)
    if fewest:
        raise DataError(
            f"{folder}: the features in it were made with other settings: {'; '.join(fewest)}. Make those of this "
            f"recipe: {command}"
        )


def key_folders(folder: Path) -> Iterator[Path]:
    """The folders of all keys in a cache. Raises ``DataError`` if it is no cache."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such feature cache.")
    keys = sorted(folder.glob(f"*/{KEY}"))
    if not keys and any(path.suffix != ".jsonl" for path in folder.iterdir()):  # an emptied cache keeps its hashes
        raise DataError(f"{folder}: is no feature cache; expected a folder that 'sightbridge cache RECIPE' made.")
    return (path.parent for path in keys)


def write_key(folder: Path, key: CacheKey, about: dict[str, Any]) -> Path:
    """Make the folder of ``key`` in a cache, if it is not there; ``about`` is for people who read the file."""
    inner = folder / key.folder
    if not (inner / KEY).exists():
        content = {"format": "sightbridge-feature-cache", "key": key.model_dump(mode="json"), "about": about}
        try:
            write_atomically(inner / KEY, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(f"{folder}: cannot be made or written ({error.strerror}). Choose another cache.") from error
    return inner


def read_key(inner: Path) -> CacheKey:
    """The key of a folder that ``key_folders`` found. Raises ``DataError`` if it is damaged or of another release."""
    path = inner / KEY
    try:
        return CacheKey.model_validate(json.loads(path.read_text(encoding="utf-8"))["key"])
    except (ValueError, RecursionError, KeyError, TypeError, ValidationError) as error:
        first = str(error).partition("\n")[0]
        raise DataError(f"{path}: not the key of a feature cache ({first}). Delete its folder.") from error


def _flatten(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
