"""A part of which only some submodules trained, such as the linear layer behind a frozen Q-Former.

A model folder stores these alone, and says in which other model folder the rest is: a few megabytes for MiniGPT4Qwen's
3 million trained weights instead of half a gigabyte.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from sightbridge.checkpoints.manifest import MANIFEST, PartEntry, inner_path, read_manifest
from sightbridge.checkpoints.weights import fingerprint, is_inside, load_some, unique_tensors
from sightbridge.errors import CheckpointError


def remember_origin(part: nn.Module, folder: Path | None) -> None:
    """Note which model folder all weights of ``part`` were taken from, or that they come from several places."""
    part.rest_from = folder  # type: ignore[assignment]


def find_rest(part: nn.Module) -> Path | None:
    """Return the model folder that holds all of ``part`` but what trained, if there is one."""
    origin: Path | None = getattr(part, "rest_from", None)
    only: tuple[str, ...] = getattr(part, "trained_submodules", ())
    if origin is None or not only:
        return None
    try:
        with safe_open(_file_of_rest(origin), framework="pt") as file:
            there = set(file.keys())
    except (SafetensorError, OSError, CheckpointError):
        return None  # it is gone or was replaced: everything is stored
    return origin if _rest_names(part, only) <= there else None


def places_of(rest: Path, folder: Path) -> list[str]:
    """Where to look for the folder ``rest``: beside the model folder, if both are moved together, and where it is."""
    return [os.path.relpath(rest, folder), str(rest)]


def load_rest(part: nn.Module, entry: PartEntry, folder: Path, place: str | Path | None = None) -> Path:
    """Fill ``part`` but for what ``entry`` stores, and return the folder that it was filled from.

    Args:
        part: a connector.
        entry: of that connector, with ``rest``.
        folder: whose manifest ``entry`` is in.
        place: where the rest lies now, if not where the manifest says.

    Raises:
        CheckpointError: the folder is not there, or holds another connector.
    """
    found, file = find_place(entry, folder, place)
    load_some(part, file, _rest_names(part, entry.only))
    return found


def find_place(entry: PartEntry, folder: Path, place: str | Path | None = None) -> tuple[Path, Path]:
    """The model folder that holds the rest, and its file of it; arguments and errors as those of ``load_rest``."""
    places = [Path(place)] if place else [(folder / name).resolve() for name in entry.rest]
    found = next((path for path in places if (path / MANIFEST).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{folder}: holds only {', '.join(entry.only)} of its connector; the rest was in {places[-1]}, where there "
            "is no model folder now. Say where it is with sources={'connector': FOLDER}; a folder that was saved with "
            "self_contained=True needs no other."
        )
    return found, _file_of_rest(found)


def check_whole(part: nn.Module, entry: PartEntry, folder: Path, rest: Path) -> None:
    """Raise ``CheckpointError`` if a part put together from two folders is not the one that was trained."""
    if fingerprint(part) != entry.fingerprint:
        raise CheckpointError(
            f"{folder}: the connector in {rest} is not the one that this model was trained with: its weights differ. "
            "Give the right one with sources={'connector': FOLDER}."
        )


def _rest_names(part: nn.Module, only: Collection[str]) -> set[str]:
    return {name for name in unique_tensors(part) if not is_inside(name, only)}


def _file_of_rest(folder: Path) -> Path:
    """The file of a connector, or of the first stage's Q-Former, whose weights have the same names."""
    parts = read_manifest(folder).parts
    entry = parts.get("connector", parts.get("qformer"))
    if entry is None or entry.file is None:
        raise CheckpointError(f"{folder}: stores neither a connector nor a Q-Former.")
    return inner_path(folder, entry.file)
