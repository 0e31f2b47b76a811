"""The text branch of a Q-Former, which BLIP-2's second stage has thrown away when VQA fine-tuning asks for it again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sightbridge.errors import CheckpointError
from sightbridge.models.connectors.qformer import QFormerConnector

TEXT_BRANCH = re.compile(r"embeddings\.|qformer\.encoder\.layer\.\d+\.(intermediate|output)\.")
"""Beginnings of the names of its weights."""


def has_text_branch(path: Path) -> bool:
    """Whether a connector's file holds one; raises ``CheckpointError`` if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return any(TEXT_BRANCH.match(name) for name in file.keys())  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error


def load_without_text_branch(connector: QFormerConnector, path: Path) -> list[str]:
    """Fill a connector that reads questions from the file of one that does not; its text branch stays as it is.

    Returns what was taken and what stays, a line each. Raises ``CheckpointError`` if anything else differs.
    """
    return take_without_text_branch(connector, load_file(path), path)


@torch.no_grad()
def take_without_text_branch(connector: QFormerConnector, weights: Mapping[str, Tensor], path: Path) -> list[str]:
    """The same with the ``weights`` of a file that is of any format."""
    wanted = {name: weight for name, weight in connector.state_dict().items() if not TEXT_BRANCH.match(name)}
    shapes = {name: tuple(weight.shape) for name, weight in wanted.items()}
    differing = sorted(name for name, weight in weights.items() if shapes.pop(name, None) != tuple(weight.shape))
    if differing or shapes:
        raise CheckpointError(
            f"{path}: the connector there is not built as the one here: {', '.join([*differing, *shapes][:5])}. Give "
            "model.connector the settings of that model, and those of its text branch."
        )
    for name, weight in weights.items():
        wanted[name].copy_(weight)
    count = sum(weight.numel() for weight in weights.values())
    return [f"connector: {count:,} weights, its text branch as it was before"]
