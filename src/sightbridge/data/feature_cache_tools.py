"""Looking after a feature cache: what is in it, whether it is intact, and what nothing uses any more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightbridge.data.feature_cache import KEY, CacheKey, key_folders, read_key
from sightbridge.data.feature_shards import SUFFIX, is_intact, open_shard, read_entries, read_rows, write_shard
from sightbridge.data.picture_hashes import PictureHashes


@dataclass(frozen=True)
class Contents:
    """What lies under one key; ``about`` are the notes written when it was made."""

    folder: Path
    key: CacheKey
    about: dict[str, Any]
    entries: int
    shards: int
    nbytes: int


def list_contents(folder: Path) -> Iterator[Contents]:
    """What a cache holds, key by key. Raises ``DataError`` if it is no cache, or a key or a shard is damaged."""
    for inner in key_folders(folder):
        shards = list(shards_in(inner))
        yield Contents(
            inner,
            read_key(inner),
            json.loads((inner / KEY).read_text(encoding="utf-8")).get("about", {}),
            entries=sum(len(read_entries(open_shard(path))) for path in shards),
            shards=len(shards),
            nbytes=sum(path.stat().st_size for path in shards),
        )


def shards_in(inner: Path) -> Iterator[Path]:
    """The finished shards of a key's folder."""
    return (path for path in sorted(inner.glob(f"*{SUFFIX}")) if not path.name.startswith("."))


def find_damage(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Read every byte of a cache and yield its shards, each with whether it is intact, and keys that are not."""
    for inner in key_folders(folder):
        if inner.name != read_key(inner).folder:
            yield inner / KEY, False
        for path in shards_in(inner):
            yield path, is_intact(path)


@dataclass
class Garbage:
    """What can be removed from a cache: whole folders, files, and entries out of shards that also hold others."""

    folders: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    rewritten: dict[Path, list[int]] = field(default_factory=dict)
    """Shards of which only these rows stay."""
    entries: int = 0
    nbytes: int = 0


def find_garbage(folder: Path, used: Mapping[str, Set[str]] | None = None) -> Garbage:
    """Find what nothing uses.

    That is what builds that were killed have left, and the features of pictures that are not there any more or have
    changed. With ``used`` (the entries in use, by the name of their key's folder) it is every other entry instead.

    Raises ``DataError`` if the folder is no cache, or a shard is damaged.
    """
    garbage = Garbage()
    present = PictureHashes(folder).present() if used is None else set()
    for inner in key_folders(folder):
        shards = list(shards_in(inner))
        if used is not None and inner.name not in used:
            garbage.folders.append(inner)
            garbage.entries += sum(len(read_entries(open_shard(path))) for path in shards)
            garbage.nbytes += sum(path.stat().st_size for path in shards)
            continue
        unfinished = list(inner.glob(".*.tmp"))
        garbage.files += unfinished
        garbage.nbytes += sum(path.stat().st_size for path in unfinished)
        for path in shards:
            entries = read_entries(open_shard(path))
            kept = [
                row
                for row, entry in enumerate(entries)
                if (entry in used[inner.name] if used is not None else entry.partition("/")[0] in present)
            ]
            if len(kept) == len(entries):
                continue
            garbage.entries += len(entries) - len(kept)
            garbage.nbytes += path.stat().st_size * (len(entries) - len(kept)) // len(entries)
            if kept:
                garbage.rewritten[path] = kept
            else:
                garbage.files.append(path)
    return garbage


def remove_garbage(garbage: Garbage) -> None:
    """Remove what ``find_garbage`` found. Killed in the middle, it leaves a cache that is whole."""
    for inner in garbage.folders:
        shutil.rmtree(inner)
    for path, rows in garbage.rewritten.items():
        shard = open_shard(path)
        entries = read_entries(shard)
        write_shard(path.parent, [entries[row] for row in rows], *read_rows(shard, rows))
        path.unlink()
    for path in garbage.files:
        path.unlink()
