"""Which container a file is, told by its content, and its reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightbridge.checkpoints.sources.base import NoWeightsError, Stored
from sightbridge.checkpoints.sources.paddle_file import read_paddle
from sightbridge.checkpoints.sources.safetensors_file import is_safetensors, read_safetensors
from sightbridge.checkpoints.sources.torch_file import is_legacy, read_legacy, read_zip
from sightbridge.checkpoints.sources.wrappers import named_tensors, plain_values
from sightbridge.errors import CheckpointError

MAX_JSON = 32 << 20
OTHERS = {
    b"GGUF": "a GGUF file of llama.cpp; convert the model that it was made from",
    b"\x89HDF": "an HDF5 file (Keras, TensorFlow); save the model from PyTorch",
    b"version https://git-lfs": "only Git LFS's pointer to a file; fetch the file itself with 'git lfs pull'",
    b"\x1f\x8b": "compressed; unpack it first",
    b"BZh": "compressed; unpack it first",
    b"\xfd7zXZ": "compressed; unpack it first",
    b"<": "a page of HTML or XML: the download of a file has failed",
    b"\x93NUMPY": "a single array of numpy",
}
"""Beginnings of files that are met in place of weights, and what they are."""


def read_container(path: Path, may_be_empty: bool = False) -> tuple[str, dict[str, Stored], dict[str, Any]]:
    """Kind of container, tensors by name, and plain values beside them.

    Args:
        path: a file, whatever it is called.
        may_be_empty: one without tensors is right, too.

    Raises:
        CheckpointError: the file is damaged, hostile, or no container of weights.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
        if is_safetensors(start, size):
            tensors, notes = read_safetensors(path)
            named, _ = named_tensors(tensors, path, may_be_empty)
            return "safetensors", named, plain_values(notes)
        if start.startswith(b"PK\x03\x04"):
            return "torch", *named_tensors(read_zip(path), path, may_be_empty)
        if is_legacy(start):
            return "torch", *named_tensors(read_legacy(path), path, may_be_empty)
        if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04"):
            return "paddle", *named_tensors(read_paddle(path), path, may_be_empty)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    raise NoWeightsError(f"{path}: not a file of weights: {_what_else(start, size)}.")


def _what_else(start: bytes, size: int) -> str:
    if not size:
        return "it is empty"
    what = next((what for beginning, what in OTHERS.items() if start.startswith(beginning)), None)
    return what or "expected safetensors, a file of torch.save, or PaddlePaddle's .pdparams"


def read_json(path: Path) -> dict[str, Any]:
    """A table in JSON; raises ``CheckpointError`` for anything else, or more than a model has to say."""
    if path.stat().st_size > MAX_JSON:
        raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes are more than any model has to say in JSON.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file ({_first_line(error)}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, and it holds a {type(content).__name__}.")
    return content


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
