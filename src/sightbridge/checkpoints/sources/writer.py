"""Weights to files: safetensors and .pdparams with one tensor in memory at a time, torch's as a whole."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from sightbridge.checkpoints.atomic import atomic_file
from sightbridge.checkpoints.sources.base import TensorInfo, Weights
from sightbridge.config.load import write_atomically
from sightbridge.errors import CheckpointError

if TYPE_CHECKING:
    from sightbridge.checkpoints.atomic import Resumable

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
"""Types and their names in safetensors, in the order in which that library sorts tensors, from last to first."""
ORDER = {dtype: place for place, dtype in enumerate(DTYPES)}
PADDLE_TYPES = {
    torch.bool: "b1",
    torch.uint8: "u1",
    torch.int8: "i1",
    torch.int16: "i2",
    torch.int32: "i4",
    torch.int64: "i8",
    torch.float16: "f2",
    torch.bfloat16: "u2",
    torch.float32: "f4",
    torch.float64: "f8",
}
"""Types and numpy's codes for what Paddle writes of them."""
OnTensor = Callable[[str], None]


def write_safetensors(
    path: Path,
    weights: Weights,
    names: Iterable[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    on_tensor: OnTensor | None = None,
    allow_nan: bool = False,
) -> None:
    """Write one safetensors file, byte for byte as ``safetensors.torch.save_file`` would, but streaming.

    Args:
        path: the new file; it is there whole or not at all.
        weights: where the tensors are read from.
        names: which of them; all by default.
        metadata: texts for the header. ``{"format": "pt"}`` by default, which transformers asks for.
        on_tensor: called with each name once it is written.
        allow_nan: write also what is not finite.

    Raises:
        CheckpointError: a tensor holds NaN or infinity, or has a type that safetensors lacks.
    """
    infos = {name: weights.infos[name] for name in (weights.infos if names is None else names)}
    for name, info in infos.items():
        if info.dtype not in DTYPES:
            raise CheckpointError(f"{weights.path}: '{name}' is of type {info.dtype}, which safetensors does not have.")
    order = sorted(infos, key=lambda name: (-ORDER[infos[name].dtype], name))
    with atomic_file(path) as partial, partial.open("wb") as file:
        file.write(_header(infos, order, metadata or {"format": "pt"}))
        for name in order:
            file.write(_raw_bytes(_checked(weights, name, allow_nan)))
            if on_tensor:
                on_tensor(name)


def write_sharded(
    folder: Path,
    weights: Weights,
    names: Iterable[str] | None = None,
    max_shard_bytes: int = 5 << 30,
    on_tensor: OnTensor | None = None,
    journal: Resumable | None = None,
    allow_nan: bool = False,
) -> list[Path]:
    """Write Hugging Face's ``model.safetensors``, or its shards and their index if they would be larger.

    Args:
        folder: where to; it is made.
        weights: where the tensors are read from.
        names: which of them, in this order; all by default.
        max_shard_bytes: a tensor that is larger alone gets a file of its own.
        on_tensor: called with each name once it is written.
        journal: of ``resumable_folder``: shards that it has are left as they are, written ones are noted in it.
        allow_nan: write also what is not finite.

    Returns:
        Paths of the files of weights.
    """
    shards = _split(weights.infos, list(weights.infos if names is None else names), max_shard_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "model.safetensors"]
    if len(shards) > 1:
        paths = [folder / f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for path, shard in zip(paths, shards, strict=True):
        if journal and journal.has(path):
            continue
        write_safetensors(path, weights, shard, on_tensor=on_tensor, allow_nan=allow_nan)
        if journal:
            journal.finish(path)
    if len(shards) > 1:
        places = {name: path.name for path, shard in zip(paths, shards, strict=True) for name in shard}
        total = sum(weights.infos[name].bytes for name in places)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_atomically(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    return paths


def write_torch(
    path: Path,
    weights: Weights,
    names: Iterable[str] | None = None,
    wrapper: str | None = None,
    extra: Mapping[str, Any] | None = None,
    on_tensor: OnTensor | None = None,
    allow_nan: bool = False,
) -> None:
    """Write a file of ``torch.save``, which is in memory as a whole.

    Args:
        path: the new file; it is there whole or not at all.
        weights: where the tensors are read from.
        names: which of them; all by default.
        wrapper: the key to put them under, such as LAVIS' ``model``; none by default.
        extra: plain values beside the wrapper.
        on_tensor: called with each name once it is read.
        allow_nan: write also what is not finite.
    """
    tensors = {}
    for name in weights.infos if names is None else names:
        tensors[name] = _checked(weights, name, allow_nan)
        if on_tensor:
            on_tensor(name)
    with atomic_file(path) as partial:
        torch.save({wrapper: tensors, **(extra or {})} if wrapper else tensors, partial)


def write_pdparams(
    path: Path,
    weights: Weights,
    names: Iterable[str] | None = None,
    on_tensor: OnTensor | None = None,
    allow_nan: bool = False,
) -> None:
    """Write PaddlePaddle's ``.pdparams`` as ``paddle.save(layer.state_dict())`` does, bfloat16 as uint16.

    The pickle is written opcode by opcode: it streams so, and names numpy's functions as every version of numpy has
    them. Linear layers are not transposed here.

    Raises:
        CheckpointError: a tensor holds NaN or infinity, or has a type that Paddle lacks.
    """
    chosen = list(weights.infos if names is None else names)
    for name in chosen:
        if weights.infos[name].dtype not in PADDLE_TYPES:
            raise CheckpointError(
                f"{weights.path}: '{name}' is of type {weights.infos[name].dtype}, which Paddle's files do not have."
            )
    with atomic_file(path) as partial, partial.open("wb") as file:
        file.write(pickle.PROTO + b"\x04" + pickle.EMPTY_DICT)
        for name in chosen:
            file.write(_pickled(name))
            _write_array(file, _checked(weights, name, allow_nan))
            file.write(pickle.SETITEM)
            if on_tensor:
                on_tensor(name)
        file.write(_pickled("StructuredToParameterName@@"))
        file.write(_pickled({name: name for name in chosen}) + pickle.SETITEM + pickle.STOP)


def _write_array(file: BinaryIO, tensor: Tensor) -> None:
    """Opcodes of numpy's own ``__reduce__``: an empty array, then its state."""
    bytes_, code = _raw_bytes(tensor), PADDLE_TYPES[tensor.dtype]
    order = "|" if code[1] == "1" else "<"
    file.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n" + pickle.GLOBAL + b"numpy\nndarray\n")
    file.write(_pickled((0,)) + _pickled(b"b") + pickle.TUPLE3 + pickle.REDUCE)
    file.write(pickle.MARK + _pickled(1) + _pickled(tuple(tensor.shape)))
    file.write(pickle.GLOBAL + b"numpy\ndtype\n" + _pickled((code, False, True)) + pickle.REDUCE)
    file.write(_pickled((3, order, None, None, None, -1, -1, 0)) + pickle.BUILD)
    file.write(pickle.NEWFALSE + pickle.BINBYTES8 + struct.pack("<Q", len(bytes_)))
    file.write(bytes_)
    file.write(pickle.TUPLE + pickle.BUILD)


def _pickled(value: Any) -> bytes:
    """Opcodes of a plain value, to stand among others: without protocol, frame, memory and end."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=3)  # the last without frames
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()[2:-1]


def _header(infos: dict[str, TensorInfo], order: list[str], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        end = offset + infos[name].bytes
        header[name] = {
            "dtype": DTYPES[infos[name].dtype],
            "shape": list(infos[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _split(infos: Mapping[str, TensorInfo], names: list[str], max_bytes: int) -> list[list[str]]:
    """Names in order, so many at a time that no shard is larger than ``max_bytes``, unless by a single tensor."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in names:
        if shards[-1] and size + infos[name].bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += infos[name].bytes
    return shards


def _checked(weights: Weights, name: str, allow_nan: bool) -> Tensor:
    tensor, info = weights.read(name), weights.infos[name]
    assert (tuple(tensor.shape), tensor.dtype) == (info.shape, info.dtype), f"'{name}' is not what was announced"
    if not allow_nan and not _is_finite(tensor):
        raise CheckpointError(
            f"{weights.path}: '{name}' holds NaN or infinity: the training that wrote it had failed, or the file is "
            "damaged. To take it as it is: --allow-nan."
        )
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN or infinity: they show in the extremes, which take no memory as ``isfinite`` does."""
    if not tensor.numel() or not tensor.is_floating_point() or tensor.dtype.itemsize == 1:
        return True
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def _raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
