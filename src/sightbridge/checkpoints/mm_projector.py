"""LLaVA's ``mm_projector.bin`` into a connector, and the connector of a model folder into such a file.

What is in the file, and under which names, is in ``formats.mm_projector``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sightbridge.checkpoints.atomic import atomic_file
from sightbridge.checkpoints.formats.llava_parts import BRIDGE
from sightbridge.checkpoints.formats.mm_projector import projector_weights
from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.manifest import MANIFEST, Manifest, inner_path, read_manifest
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.checkpoints.weights import file_hash
from sightbridge.errors import CheckpointError
from sightbridge.models.connectors.linear import LinearConnector
from sightbridge.models.connectors.mlp import MLPConnector

PREFIXES = ("model.mm_projector.", "mm_projector.")
"""What keys begin with: of LLaVA-1.5 and later, and of older files. The original code reads both."""


def load_mm_projector(connector: nn.Module, path: Path) -> tuple[list[str], list[str]]:
    """Fill a connector, in place and in the type that it is held in.

    Args:
        connector: an MLP or a linear layer.
        path: ``mm_projector.bin``, or the same keys as safetensors.

    Returns:
        Lines for a report: what was taken, and what else the file holds.

    Raises:
        CheckpointError: the file is damaged or no projector, or belongs to another tower or language model.
    """
    weights, others = read_mm_projector(path)
    count = fill_projector(connector, weights, path)
    return [f"connector: {count:,} weights"], [f"{name}: is no part of a connector" for name in others]


@torch.no_grad()
def fill_projector(connector: nn.Module, weights: dict[str, Tensor], path: Path) -> int:
    """Fill a connector with the ``weights`` of a projector at ``path``; returns how many; errors as above."""
    if not isinstance(connector, MLPConnector | LinearConnector):
        raise CheckpointError(
            f"{path}: holds an MLP or a linear layer, and the connector here is another one. Set "
            "model.connector.kind=mlp, or start from a model folder."
        )
    wanted = connector.state_dict()
    if problem := _what_differs(weights, wanted):
        raise CheckpointError(f"{path}: {problem}")
    for name, weight in weights.items():
        wanted[name].copy_(weight)
    return sum(weight.numel() for weight in weights.values())


def read_mm_projector(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read a file's weights under our connectors' names, and the keys of what else it holds (embeddings).

    Raises ``CheckpointError`` for a damaged file, one without a projector, or one with keys that none has.
    """
    with open_weights(path) as file:
        mapped, others = projector_weights(file)
        return {name.removeprefix(BRIDGE): mapped.read(name) for name in mapped.infos}, others


def export_mm_projector(folder: Path, path: Path, prefix: str = PREFIXES[0]) -> int:
    """Write the connector of a model folder as a projector-only file; returns how many weights it has.

    Args:
        folder: a model folder, whose other parts are not read.
        path: the new file, ``.safetensors`` or anything else for a file of ``torch.save``.
        prefix: one of ``PREFIXES``.

    Raises:
        CheckpointError: it is no model folder, its connector is damaged, not stored there as a whole, or of a kind
            that LLaVA does not have.
    """
    manifest = read_manifest(folder)
    if not isinstance(manifest, Manifest) or manifest.settings.connector.kind not in ("mlp", "linear"):
        kind = manifest.settings.connector.kind if isinstance(manifest, Manifest) else "Q-Former"
        raise CheckpointError(f"{folder}: its connector is a {kind}; mm_projector files hold an MLP or a linear layer.")
    entry = manifest.parts["connector"]
    assert entry.file is not None, "a connector is always stored"
    if entry.only:
        raise CheckpointError(
            f"{folder}: holds only {', '.join(entry.only)} of its connector, the rest is in {entry.rest[-1]}. Save the "
            "model with self_contained=True first."
        )
    file = inner_path(folder, entry.file)
    if not file.is_file() or file_hash(file) != entry.sha256:
        raise CheckpointError(f"{file}: missing or damaged: its SHA-256 is not the one in {MANIFEST}.")
    ours = {BRIDGE + name: tensor for name, tensor in load_file(file).items()}
    table = "mm_projector_vip" if f"{BRIDGE}input_norm.weight" in ours else "mm_projector"
    theirs = KeyMap.named(table).to_theirs(Weights.of(ours, file))
    weights = {prefix + name.removeprefix(PREFIXES[0]): theirs.read(name) for name in theirs.infos}
    with atomic_file(path) as writing:
        if path.suffix == ".safetensors":
            save_file(weights, writing)
        else:
            torch.save(weights, writing)
    return sum(tensor.numel() for tensor in weights.values())


def _what_differs(weights: dict[str, Tensor], wanted: dict[str, Any]) -> str | None:
    """Say what another projector was made for, and which setting asks for that one; ``None`` if it fits."""
    if (there := "input_norm.weight" in weights) != ("input_norm.weight" in wanted):
        return (
            f"the projector there has {'a' if there else 'no'} LayerNorm in front, as "
            f"{'ViP-LLaVA has' if there else 'LLaVA-1.5 has none'}, and the connector here is built otherwise. Set "
            f"model.connector.input_norm={'true' if there else 'false'}."
        )
    if names := sorted(weights.keys() ^ wanted.keys()):
        linear = sum(weight.ndim == 2 for weight in weights.values())
        kind = "linear" if "output.weight" in weights else f"mlp model.connector.layers={linear}"
        which = ", ".join(f"{name} is {'not here' if name in weights else 'missing there'}" for name in names[:3])
        return (
            f"the projector there has other layers than the connector here ({which}). Set model.connector.kind={kind}."
        )
    first = next(name for name in ("layers.0.weight", "output.weight") if name in wanted)
    width_there, channels_there = weights[first].shape
    width, channels = wanted[first].shape
    if channels_there != channels:
        return (
            f"the projector there reads {channels_there} channels, the vision tower here gives {channels}. Set "
            "model.vision_tower to the tower that it was trained with: LLaVA-1.5 takes layer -2 of CLIP-L/336 (1024), "
            "ViP-LLaVA layers -2, -5, -8, -11 and 6 (5120)."
        )
    if width_there != width:
        return (
            f"the projector there was trained for a language model of width {width_there}, the one here has {width}: "
            "a 7B's does not fit a 13B, nor another base. Set model.language_model.source to the one it belongs to."
        )
    wrong = [name for name in wanted if weights[name].shape != wanted[name].shape]
    return f"'{wrong[0]}' has the shape {tuple(weights[wrong[0]].shape)}; the file is damaged." if wrong else None
