"""Filling a feature cache: open what is missing, encode it, write it shard by shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sightbridge.config.data import CacheDtype
from sightbridge.data.feature_shards import pictures_per_shard, write_shard
from sightbridge.data.feature_store import Encode, View, Views, entry_bytes, to_dtype
from sightbridge.errors import ImageError

Opened = tuple[str, Tensor | str]
"""An entry's name, and its pixels (3, H, W) or why the picture cannot be opened."""


class OpenedViews(Dataset[Opened]):
    """Pixels of views; what is wrong with a picture comes back as a text, not as an exception of a worker."""

    def __init__(self, wanted: Mapping[str, View], views: Views) -> None:
        self.wanted = list(wanted.items())
        self.views = views

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, index: int) -> Opened:
        entry, view = self.wanted[index]
        try:
            return entry, self.views.open(view)
        except ImageError as error:
            return entry, str(error)


def build_entries(
    folder: Path,
    wanted: Mapping[str, View],
    views: Views,
    encode: Encode,
    dtype: CacheDtype,
    *,
    batch_size: int = 32,
    workers: int = 0,
    process: int = 0,
    per_shard: int | None = None,
    advance: Callable[[int], None] = lambda pictures: None,
) -> dict[str, str]:
    """Encode ``wanted`` and write their shards into ``folder``, that of a key.

    Pictures that cannot be opened are listed in the folder and returned, with the reason, by entry. ``advance`` is
    called with the number of pictures done. Killed at any moment, it leaves what was finished, and no more than one
    shard of work is lost.
    """
    loader = DataLoader(
        OpenedViews(wanted, views),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        generator=torch.Generator(),
    )
    bad: dict[str, str] = {}
    shard: list[tuple[str, Tensor, Tensor | None]] = []
    for opened in _batches(iter(loader), batch_size):
        good = [(entry, pixels) for entry, pixels in opened if isinstance(pixels, Tensor)]
        broken = {entry: reason for entry, reason in opened if isinstance(reason, str)}
        _list_bad(folder / f"bad-{process}.jsonl", broken)
        bad.update(broken)
        if good:
            with torch.no_grad():
                features = encode(torch.stack([pixels for _, pixels in good])).cpu()
            values, scales = to_dtype(features, dtype)
            shard += [(good[i][0], values[i], None if scales is None else scales[i]) for i in range(len(good))]
        size = per_shard or (pictures_per_shard(entry_bytes(shard[0][1], shard[0][2])) if shard else 1)
        while len(shard) >= size:
            _write(folder, shard[:size])
            shard = shard[size:]
        advance(len(opened))
    if shard:
        _write(folder, shard)
    return bad


def _as_it_is(opened: Opened) -> Opened:
    return opened


def _batches(items: Iterator[Opened], size: int) -> Iterator[list[Opened]]:
    while batch := list(islice(items, size)):
        yield batch


def _write(folder: Path, shard: list[tuple[str, Tensor, Any]]) -> None:
    entries, values, scales = zip(*shard, strict=True)
    write_shard(folder, entries, torch.stack(values), None if scales[0] is None else torch.stack(scales))


def _list_bad(path: Path, bad: Mapping[str, str]) -> None:
    if bad:
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")  # ends a line that a kill has cut short
            file.writelines(json.dumps({"entry": entry, "reason": reason}) + "\n" for entry, reason in bad.items())
