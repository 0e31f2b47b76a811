"""Tensors in files: where their bytes lie, and how these are read.

Bytes are read into memory of their own and files are not mapped: what is mapped counts as a process's memory as long as
the map is open, which for a model of many shards is all of it.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sightbridge.checkpoints.sources.base import TensorInfo
from sightbridge.errors import CheckpointError

MAX_AXES = 16
MAX_LENGTH = 1 << 40
"""Largest length of an axis."""


class Payload(Protocol):
    """Bytes somewhere."""

    def fits(self, size: int) -> bool:
        """Whether ``size`` bytes can be what is there."""
        ...

    def read(self, size: int, start: int = 0) -> Tensor:
        """The ``size`` bytes from ``start`` on, uint8 in writable memory; raises ``CheckpointError``."""
        ...


@dataclass(frozen=True)
class FilePart:
    """``length`` bytes of a file, with the CRC-32 that they should have if it is known."""

    file: Path
    offset: int
    length: int
    checksum: int | None = None

    def fits(self, size: int) -> bool:
        """As of every ``Payload``."""
        return size <= self.length

    def read(self, size: int, start: int = 0) -> Tensor:
        """As of every ``Payload``; the checksum is looked at when all of the bytes are read."""
        data = torch.empty(size, dtype=torch.uint8)
        view = data.numpy().data
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.offset + start)
                done = 0
                while done < size and (count := file.readinto(view[done:])):
                    done += count
        except OSError as error:
            raise CheckpointError(f"{self.file}: cannot be read ({error.strerror}).") from error
        if done < size:
            raise CheckpointError(f"{self.file}: ends in the middle of a tensor. Was it cut off, or is it changing?")
        if self.checksum is not None and size == self.length and zlib.crc32(view) != self.checksum:
            raise CheckpointError(
                f"{self.file}: damaged: {size:,} bytes from {self.offset:,} on do not have the checksum noted for them."
            )
        return data


@dataclass(frozen=True)
class Inline:
    """Bytes that are here already."""

    data: bytes

    def fits(self, size: int) -> bool:
        """As of every ``Payload``."""
        return size == len(self.data)

    def read(self, size: int, start: int = 0) -> Tensor:
        """As of every ``Payload``."""
        part = self.data[start : start + size]
        return torch.frombuffer(bytearray(part), dtype=torch.uint8) if part else torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True)
class LatinText:
    """Bytes as a text in UTF-8, one or two bytes for each: how pickle's protocol 2 stores them."""

    text: FilePart

    def fits(self, size: int) -> bool:
        """As of every ``Payload``."""
        return size <= self.text.length <= 2 * size

    def read(self, size: int, start: int = 0) -> Tensor:
        """As of every ``Payload``."""
        try:
            data = self.text.read(self.text.length).numpy().tobytes().decode("utf-8").encode("latin1")
        except UnicodeError as error:
            raise CheckpointError(f"{self.text.file}: damaged: the bytes of a tensor are no text in UTF-8.") from error
        if len(data) != size:
            raise CheckpointError(f"{self.text.file}: damaged: a tensor of {size:,} bytes has {len(data):,}.")
        return Inline(data).read(size, start)


@dataclass(frozen=True)
class FileTensor:
    """A tensor whose elements lie among the bytes of a payload: from byte ``start`` on, ``strides`` elements apart.

    ``None`` as strides means one after another.
    """

    file: Path
    payload: Payload
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int = 0
    strides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Raise ``CheckpointError`` if the bytes are too few, or one of them stands for several elements."""
        for name, numbers in (("shape", self.shape), ("strides", self.strides or ()), ("start", (self.start,))):
            whole = all(type(number) is int and 0 <= number <= MAX_LENGTH for number in numbers)
            if not whole or len(numbers) > MAX_AXES:
                raise CheckpointError(f"{self.file}: damaged: the {name} of a tensor cannot be right.")
        if self.strides is not None and len(self.strides) != len(self.shape):
            raise CheckpointError(f"{self.file}: damaged: a tensor has strides of other axes than its shape.")
        size, extent = math.prod(self.shape) * self.dtype.itemsize, self.extent * self.dtype.itemsize
        if size > extent or not self.payload.fits(self.start + extent):
            raise CheckpointError(f"{self.file}: damaged: a tensor of shape {self.shape} is larger than what is there.")

    @property
    def extent(self) -> int:
        """How many elements lie between its first and its last, both included."""
        if self.strides is None or not math.prod(self.shape):
            return math.prod(self.shape)
        return 1 + sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))

    @property
    def info(self) -> TensorInfo:
        """As of every ``Stored``."""
        return TensorInfo(self.shape, self.dtype, self.file)

    def read(self) -> Tensor:
        """As of every ``Stored``."""
        if not math.prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        try:
            elements = self.payload.read(self.extent * self.dtype.itemsize, self.start).view(self.dtype)
        except RuntimeError as error:  # torch's own for want of memory
            raise CheckpointError(f"{self.file}: not enough memory for a tensor of shape {self.shape}.") from error
        if self.strides is None:
            return elements.reshape(self.shape)
        return elements.as_strided(self.shape, self.strides).contiguous()


@dataclass(frozen=True)
class SlicedTensor:
    """A tensor in several pieces, one after another."""

    pieces: tuple[FileTensor, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raise ``CheckpointError`` if the pieces are not together the whole."""
        file, dtype = self.pieces[0].file, self.pieces[0].dtype
        count = sum(math.prod(piece.shape) for piece in self.pieces)
        if any(piece.dtype != dtype for piece in self.pieces) or count != math.prod(self.shape):
            raise CheckpointError(f"{file}: damaged: the slices of a tensor of shape {self.shape} are not its own.")

    @property
    def info(self) -> TensorInfo:
        """As of every ``Stored``."""
        return TensorInfo(self.shape, self.pieces[0].dtype, self.pieces[0].file)

    def read(self) -> Tensor:
        """As of every ``Stored``."""
        whole = torch.empty(math.prod(self.shape), dtype=self.info.dtype)
        place = 0
        for piece in self.pieces:
            values = piece.read().reshape(-1)
            whole[place : place + len(values)] = values
            place += len(values)
        return whole.reshape(self.shape)
