"""A Q-Former without its projection: the one layer that belongs to a language model and not to the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sightbridge.checkpoints.weights import load_some, unique_tensors
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.connectors.qformer import QFormerConnector
from sightbridge.models.parts import trains

PROJECTION = "output."
"""Beginning of the names of a connector's projection to the width of the language model."""


def why_fresh(connector: QFormerConnector, path: Path, asked: bool) -> str | None:
    """Why the projection in a connector's file is not to be used; ``None`` if it is.

    Args:
        connector: to be filled.
        path: the file.
        asked: whether ``training.fresh_projection`` asks for random weights.

    Raises ``CheckpointError`` if the file cannot be read.
    """
    if asked:
        return "training.fresh_projection asks for it"
    try:
        with safe_open(path, framework="pt") as file:
            there = file.get_slice("output.weight").get_shape()[0] if "output.weight" in file.keys() else None  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error
    return _why_unfit(connector, there)


def why_fresh_of(connector: QFormerConnector, weights: Mapping[str, Tensor], asked: bool) -> str | None:
    """The same of the ``weights`` of a file of any format, which may have no projection at all."""
    if asked:
        return "training.fresh_projection asks for it"
    if "output.weight" not in weights:
        return "there is none in the file"
    return _why_unfit(connector, len(weights["output.weight"]))


def _why_unfit(connector: QFormerConnector, there: int | None) -> str | None:
    here = connector.output.out_features
    if there is None or there == here:
        return None
    return f"it leads to a language model of width {there}, the one here has {here}"


def check_trains(connector: QFormerConnector, reason: str) -> None:
    """Raise ``SettingsError`` for a projection that begins with random weights, for ``reason``, and would stay so."""
    if not trains(connector.output):
        raise SettingsError(
            f"the projection of the connector begins with random weights ({reason}) and would stay so: let it train, "
            "training.parts.connector.train=full",
            key="training.parts.connector.train",
        )


def load_without_projection(connector: nn.Module, path: Path) -> int:
    """Fill all of a connector but its projection; returns how many weights that is.

    Raises ``CheckpointError`` if anything but the projection differs.
    """
    wanted = {name: t for name, t in unique_tensors(connector).items() if not name.startswith(PROJECTION)}
    with safe_open(path, framework="pt") as file:
        beyond = sorted(key for key in file.keys() if key not in wanted and not key.startswith(PROJECTION))  # noqa: SIM118
    if beyond:
        raise CheckpointError(f"{path}: the connector there also has {', '.join(beyond[:3])}.")
    load_some(connector, path, wanted)
    return sum(tensor.numel() for tensor in wanted.values())
