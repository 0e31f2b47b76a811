"""Going on with an interrupted run: from which checkpoint, and whether the settings still fit it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sightbridge.errors import SettingsError
from sightbridge.training.checkpoints import Checkpoint, find_checkpoint

ANOTHER_MODEL = "the weights would be those of another model"
OTHER_RECORDS = "records would be left out or come twice"
CANNOT_CHANGE = {
    "model.*": ANOTHER_MODEL,
    "training.init_from*": "frozen weights, which a checkpoint does not hold, would be others",
    "training.init_parts*": "frozen weights, which a checkpoint does not hold, would be others",
    "training.fresh_projection": "frozen weights, which a checkpoint does not hold, would be others",
    "training.parts.*.train": "other weights would train than those that the optimiser knows",
    "training.parts.*.only*": "other weights would train than those that the optimiser knows",
    "optim.kind": "the optimiser's state would be of another kind",
    "data.train*": OTHER_RECORDS,
    "data.mixture*": OTHER_RECORDS,
    "data.group_by_length": OTHER_RECORDS,
    "data.pack": OTHER_RECORDS,
    "data.no_target": OTHER_RECORDS,
    "training.seed": OTHER_RECORDS,
    "training.batch_size": OTHER_RECORDS,
    "training.accumulation": OTHER_RECORDS,
    "training.global_batch": OTHER_RECORDS,
}
"""Keys that a resumed run cannot have changed, and why. All others hold from the checkpoint on."""
LENGTH = ("training.steps", "training.epochs")


def resume_from(folder: Path, recipe: BaseModel, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the checkpoint to go on from; ``None`` if there is none yet. ``say`` is told what the user should know.

    Raises:
        SettingsError: a setting has changed that cannot change within a run.
    """
    checkpoint = find_checkpoint(folder, say)
    if checkpoint is None:
        say(f"{folder}: there is no checkpoint to resume from, so the run starts from the beginning")
        return None
    changes = changes_since(checkpoint, recipe)
    for key in changes:
        reasons = [reason for pattern, reason in CANNOT_CHANGE.items() if fnmatchcase(key, pattern)]
        if reasons:
            raise SettingsError(
                f"{folder}: cannot be resumed with another {key} ({changes[key]}): {reasons[0]}. Give the value it "
                "had, or start a new run in another folder; training.init_from can begin it with this run's weights.",
                key=key,
            )
    if is_finished(checkpoint, recipe):
        say(f"{folder}: this run has taken all of its {checkpoint.step} steps; raise training.steps to train on")
        return checkpoint
    say(f"{folder}: resumed after step {checkpoint.step}")
    for key, change in changes.items():
        say(f"  changed from here on: {key}: {change}")
    return checkpoint


def is_finished(checkpoint: Checkpoint, recipe: BaseModel) -> bool:
    """Whether a run has nothing left to do: all steps are taken, and it was not made longer."""
    changes = changes_since(checkpoint, recipe)
    return checkpoint.finished and not any(key in changes for key in LENGTH)


def changes_since(checkpoint: Checkpoint, recipe: BaseModel) -> dict[str, str]:
    """What differs between the settings of a checkpoint and a recipe: dotted key -> ``old -> new``.

    A setting that did not exist yet when the checkpoint was written had its default. Settings that a recipe of today
    cannot have are compared as they were written.
    """
    old = checkpoint.state["settings"]
    with suppress(ValidationError):
        old = type(recipe).model_validate_json(json.dumps(old)).model_dump(mode="json")
    return changed_settings(old, recipe.model_dump(mode="json"))


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """What differs between two dumps of settings: dotted key -> ``old -> new``."""
    before, after = flatten(old), flatten(new)
    keys = [*before, *(key for key in after if key not in before)]
    return {key: f"{show(before, key)} -> {show(after, key)}" for key in keys if show(before, key) != show(after, key)}


def flatten(tree: Any, place: str = "") -> dict[str, Any]:
    """Single values of nested mappings and lists by their dotted keys."""
    if not isinstance(tree, dict | list) or not tree:
        return {place: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {key: value for name, inner in items for key, value in flatten(inner, f"{place}.{name}".strip(".")).items()}


def show(values: dict[str, Any], key: str) -> str:
    """A value as a message shows it."""
    return repr(values[key]) if key in values else "not given"
