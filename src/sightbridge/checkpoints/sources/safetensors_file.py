"""safetensors: a JSON table of names, types, shapes and places, then the numbers.

The library's own reader maps the file, and what is mapped counts as memory until the file is closed; the table is
simple enough to read here, and is held to the same rules (https://github.com/huggingface/safetensors, README "Format").
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sightbridge.checkpoints.sources.base import Stored
from sightbridge.checkpoints.sources.stored import FilePart, FileTensor
from sightbridge.checkpoints.sources.writer import DTYPES
from sightbridge.errors import CheckpointError

MAX_HEADER = 32 << 20
"""Bytes of the table: 200,000 tensors."""
TYPES = {name: dtype for dtype, name in DTYPES.items()} | {"C64": torch.complex64}


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes begins as one: the table's length in 8 bytes, then the table."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= max(size, MAX_HEADER)


def read_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Tensors by name, and the file's notes; raises ``CheckpointError`` for a damaged file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise CheckpointError(f"{path}: its table of names is larger than that of any model.")
        header = file.read(length)
    if len(header) < length:
        raise CheckpointError(f"{path}: damaged: it ends in the middle of its table of names. Was it cut off?")
    try:
        table = json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: its table of names is no JSON.") from error
    notes = table.pop("__metadata__", None) or {}
    if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
        raise CheckpointError(f"{path}: damaged: its notes are no texts.")
    start = 8 + length
    places = [_place(name, entry, path) for name, entry in table.items()]
    end = 0
    for begins, ends in sorted(place[2:] for place in places):
        if begins != end:
            raise CheckpointError(f"{path}: damaged: tensors overlap, or there is a gap between two.")
        end = ends
    if start + end != size:
        raise CheckpointError(
            f"{path}: damaged: {size:,} bytes long, but its tensors end at {start + end:,}. Was it cut off?"
        )
    tensors = {}
    for name, (dtype, shape, begins, ends) in zip(table, places, strict=True):
        tensors[name] = tensor = FileTensor(path, FilePart(path, start + begins, ends - begins), shape, dtype)
        if tensor.info.bytes != ends - begins:
            raise CheckpointError(f"{path}: damaged: '{name[:100]}' has another size than its shape says.")
    return tensors, notes


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("the same name twice")
    return table


def _place(name: str, entry: Any, path: Path) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """Type, shape, begin and end of a tensor."""
    match entry:
        case {"dtype": str() as kind, "shape": list() as shape, "data_offsets": [int() as begins, int() as ends]}:
            if kind not in TYPES:
                raise CheckpointError(f"{path}: '{name[:100]}' is of type '{kind[:20]}', which is not read here.")
            if 0 <= begins <= ends:
                return TYPES[kind], tuple(shape), begins, ends
    raise CheckpointError(f"{path}: damaged: its table does not say rightly where '{name[:100]}' is.")
