"""Named tensors that are read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from sightbridge.errors import CheckpointError, nearest

LEFT_OUT = "left_out"
"""Key of ``Weights.extra`` for the names of what a file holds besides tensors and plain values."""


class NoWeightsError(CheckpointError):
    """A file is no container of weights at all, or a folder holds none."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read; tensors of one ``file`` are best read together."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path

    @property
    def bytes(self) -> int:
        """Size in memory."""
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count


class Weights:
    """Named tensors; ``read`` gives one of them. Subclasses say where from.

    Attributes:
        path: what the user named.
        kind: the container ("safetensors", "torch", "paddle", "deepspeed", "pipeline", "memory"), for messages.
        infos: shape, type and file of every tensor, in the order of the file.
        config: content of the ``config.json`` beside it, if there is one.
        extra: small plain values that the container held beside the tensors, such as ``{"epoch": 3}``; under
            ``"left_out"`` the names of what it held besides (an optimiser's state, for one).
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        infos: dict[str, TensorInfo],
        config: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.kind = kind
        self.infos = infos
        self.config = config
        self.extra = extra or {}

    @staticmethod
    def of(
        tensors: Mapping[str, Tensor],
        path: str | Path = "memory",
        config: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Weights:
        """Tensors in memory."""
        return StoredWeights(Path(path), "memory", {n: Held(t, Path(path)) for n, t in tensors.items()}, config, extra)

    def read(self, name: str) -> Tensor:
        """Return one tensor, contiguous; raises ``CheckpointError`` if there is none or its file is damaged."""
        raise NotImplementedError

    def unknown(self, name: str) -> CheckpointError:
        """The error for a name that is not here."""
        return CheckpointError(f"{self.path}: holds no tensor '{name}'.{nearest(name, list(self.infos)[:10_000])}")

    def close(self) -> None:
        """Let go of open files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Stored(Protocol):
    """A tensor somewhere."""

    @property
    def info(self) -> TensorInfo:
        """What is known before it is read."""
        ...

    def read(self) -> Tensor:
        """Read it; raises ``CheckpointError``."""
        ...


@dataclass(frozen=True)
class Held:
    """A tensor in memory."""

    tensor: Tensor
    file: Path

    @property
    def info(self) -> TensorInfo:
        """As of every ``Stored``."""
        return TensorInfo(tuple(self.tensor.shape), self.tensor.dtype, self.file)

    def read(self) -> Tensor:
        """As of every ``Stored``."""
        return self.tensor.contiguous()


class StoredWeights(Weights):
    """Tensors that each know how to read themselves; no file is open between two readings."""

    def __init__(
        self,
        path: Path,
        kind: str,
        stored: Mapping[str, Stored],
        config: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(path, kind, {name: tensor.info for name, tensor in stored.items()}, config, extra)
        self.stored = stored

    def read(self, name: str) -> Tensor:
        """As of ``Weights``."""
        if name not in self.stored:
            raise self.unknown(name)
        return self.stored[name].read()
