"""PaddlePaddle's ``.pdparams``: a pickle of numpy arrays by name, read without Paddle and without running anything.

``paddle.save(layer.state_dict())`` writes a dictionary of arrays, and under ``StructuredToParameterName@@`` the names
that Paddle has for them itself; inside other objects every tensor is a pair of its name and an array. Protocols 2 and
3 cut arrays of more than 1 GiB into slices (paddle/framework/io.py, io_utils.py). bfloat16 is stored as uint16 with
nothing to tell it, and there are no weights that are really uint16.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sightbridge.checkpoints.sources.base import Stored
from sightbridge.checkpoints.sources.stored import FilePart, FileTensor, Inline, LatinText, SlicedTensor
from sightbridge.checkpoints.sources.unpickler import ORDERED_DICT, Inert, Known, Stateful, Stream, unpickle
from sightbridge.checkpoints.sources.writer import PADDLE_TYPES
from sightbridge.errors import CheckpointError

NAMES = "StructuredToParameterName@@"
SLICES = "UnpackBigParamInfor@@"
DTYPES = {code: dtype for dtype, code in PADDLE_TYPES.items()}
"""numpy's codes of types; u2 is how Paddle stores bfloat16."""


def read_paddle(path: Path) -> Any:
    """What was saved, with a tensor that can be read in place of each array, and the slices of one joined.

    Raises:
        CheckpointError: the file is damaged, or names anything but numpy's arrays.
    """
    with path.open("rb") as file:
        content = unpickle(Stream(file, path), _known(), strict=True)
    if isinstance(content, tuple | Array):
        content = {"tensor": content}
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a pickle, but not of arrays by name as paddle.save writes it.")
    content.pop(NAMES, None)
    slices = content.pop(SLICES, {})
    tensors = {name: _tensors(value, path) for name, value in content.items()}
    return _joined(tensors, slices, path) if slices else tensors


class DType(Stateful):
    """numpy's type of an array, by its code."""

    def __init__(self, code: Any = "", *options: Any) -> None:
        self.code = code
        self.little = True

    def set_state(self, state: Any) -> None:
        """Take the order of bytes."""
        self.little = state[1] in ("<", "|", "=")


class Array(Stateful):
    """numpy's array before and after it is given its state: version, shape, type, order of axes, bytes."""

    def __init__(self, *template: Any) -> None:
        self.state: Any = None

    def set_state(self, state: Any) -> None:
        """Take shape, type and bytes."""
        self.state = state

    def tensor(self, path: Path) -> FileTensor:
        """The tensor; raises ``CheckpointError`` for objects and types that torch lacks."""
        match self.state:
            case (_, tuple() as shape, DType() as dtype, bool() as fortran, payload):
                code = dtype.code if isinstance(dtype.code, str) else "?"
            case _:
                raise CheckpointError(f"{path}: damaged: an array without shape, type or numbers.")
        if code not in DTYPES or not dtype.little or not isinstance(payload, bytes | FilePart | LatinText):
            order = "" if dtype.little else ">"
            raise CheckpointError(f"{path}: an array of numpy's type '{order}{code[:20]}', which weights are not of.")
        place = Inline(payload) if isinstance(payload, bytes) else payload
        strides = tuple(math.prod(shape[:axis]) for axis in range(len(shape))) if fortran else None
        tensor = FileTensor(path, place, shape, DTYPES[code], strides=strides)
        if isinstance(place, FilePart) and place.length != tensor.info.bytes:
            raise CheckpointError(f"{path}: damaged: an array of shape {shape} has another size than its shape says.")
        return tensor


def _known() -> dict[str, Any]:
    def encode(text: Any, encoding: Any) -> bytes | LatinText:
        return text if isinstance(text, LatinText) else text.encode("latin1")

    array, scalar, kind = Known(Array), Known(lambda *parts: Inert("a number of numpy")), Known(DType)
    known: dict[str, Any] = {"numpy.ndarray": array, "numpy.dtype": kind, "_codecs.encode": Known(encode)}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 1 and 2
        known |= {f"{module}._reconstruct": array, f"{module}.scalar": scalar}
    first = Known(lambda values=(): tuple(values))
    return known | {"collections.OrderedDict": ORDERED_DICT, "builtins.tuple": first, "__builtin__.tuple": first}


def _tensors(value: Any, path: Path) -> Any:
    """Arrays, and pairs of a name and an array, as tensors; one level down as well, in wrappers."""
    if isinstance(value, Array):
        return value.tensor(path)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Array):
        return value[1].tensor(path)
    if isinstance(value, dict):
        return {name: inner if isinstance(inner, dict) else _tensors(inner, path) for name, inner in value.items()}
    return value


def _joined(tensors: dict[Any, Any], slices: Any, path: Path) -> dict[Any, Stored]:
    """Join what protocols 2 and 3 had cut: ``{name: {"OriginShape": shape, "slices": [names]}}``."""
    if not isinstance(slices, dict):
        raise CheckpointError(f"{path}: damaged: '{SLICES}' is no table.")
    joined = dict(tensors)
    for name, description in slices.items():
        match description:
            case {"OriginShape": list() | tuple() as shape, "slices": list() | tuple() as names} if names:
                pieces = [joined.pop(piece, None) if isinstance(piece, str) else None for piece in names]
            case _:
                raise CheckpointError(f"{path}: damaged: it does not say how '{str(name)[:100]}' was cut.")
        whole = tuple(piece for piece in pieces if isinstance(piece, FileTensor))
        if len(whole) != len(pieces) or not all(type(length) is int and length >= 0 for length in shape):
            raise CheckpointError(f"{path}: damaged: slices of '{str(name)[:100]}' are missing.")
        joined[name] = SlicedTensor(whole, tuple(shape))
    return joined
