"""One file of stored features: safetensors, with the entries' names and a hash of everything in its header.

A shard is complete as soon as it has its name, and never changed afterwards: a killed build loses only the shard it was
filling. ``values`` is (n, S, C), ``scales`` (n, S, 1) stands beside it for fp8.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sightbridge.errors import DataError

SUFFIX = ".safetensors"
FORMAT = "sightbridge-features"
SHARD_BYTES = 256 * 2**20
"""Size that shards are filled up to: what a killed build loses, and what building holds in memory."""


def pictures_per_shard(picture_bytes: int) -> int:
    """How many pictures go into a shard, at least one and at most 4096."""
    return max(1, min(4096, SHARD_BYTES // picture_bytes))


def write_shard(folder: Path, entries: Sequence[str], values: Tensor, scales: Tensor | None) -> Path:
    """Write a shard, atomically; its name is a hash of its entries, so builders never meet in one name."""
    listed = json.dumps(list(entries))
    tensors = {"values": values.contiguous()} | ({} if scales is None else {"scales": scales.contiguous()})
    metadata = {"format": FORMAT, "entries": listed, "sha256": _hash(listed, tensors)}
    path = folder / f"{hashlib.sha256(listed.encode()).hexdigest()[:16]}{SUFFIX}"
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        save_file(tensors, temporary, metadata=metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def open_shard(path: Path) -> Any:
    """Open a shard; nothing but its header is read until a row is asked for.

    Raises ``DataError`` if it is damaged.
    """
    try:
        shard = safe_open(path, framework="pt")
        metadata = shard.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}). Delete it and run 'sightbridge cache' again.") from error
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path}: holds no features; it does not belong into a feature cache.")
    return shard


def read_entries(shard: Any) -> list[str]:
    """Names of a shard's entries, row by row."""
    return json.loads(shard.metadata()["entries"])


def read_row(shard: Any, row: int) -> tuple[Tensor, Tensor | None]:
    """Values (S, C) of one entry, and its scales (S, 1) if there are any; no other entry is read."""
    scales = shard.get_slice("scales")[row] if "scales" in shard.keys() else None  # noqa: SIM118 - no dict
    return shard.get_slice("values")[row], scales


def read_rows(shard: Any, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Values (n, S, C) and scales of several entries."""
    read = [read_row(shard, row) for row in rows]
    scales = [scale for _, scale in read if scale is not None]
    return torch.stack([values for values, _ in read]), torch.stack(scales) if scales else None


def is_intact(path: Path) -> bool:
    """Whether the content of a shard still has the hash it was written with."""
    try:
        shard = open_shard(path)
        tensors = {name: shard.get_tensor(name) for name in sorted(shard.keys())}
        return _hash(shard.metadata()["entries"], tensors) == shard.metadata()["sha256"]
    except (DataError, SafetensorError, KeyError):
        return False


def _hash(entries: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(entries.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
