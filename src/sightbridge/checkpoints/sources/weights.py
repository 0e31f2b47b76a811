"""Any file of weights as named tensors that are read one at a time."""

from __future__ import annotations

from pathlib import Path

from sightbridge.checkpoints.sources.base import TensorInfo, Weights
from sightbridge.checkpoints.sources.containers import open_container

__all__ = ["TensorInfo", "Weights", "open_weights"]


def open_weights(path: str | Path) -> Weights:
    """Open a file or a folder; which container it is, its content tells.

    Raises:
        CheckpointError: it is missing, damaged, hostile or no file of weights.
    """
    return open_container(Path(path).expanduser())
