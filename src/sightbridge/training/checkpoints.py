"""The checkpoints of a run: written whole or not at all, a few of them kept, the newest intact one found again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightbridge.checkpoints.atomic import atomic_folder
from sightbridge.checkpoints.weights import file_hash
from sightbridge.training.state import RunState

CHECKPOINTS = "checkpoints"
STATE = "state.json"
FORMAT = 1
"""Of the files in a checkpoint; raised when they change their meaning."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are all there and undamaged; ``state`` is the content of its ``state.json``."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return self.state["progress"]["step"]

    @property
    def finished(self) -> bool:
        """Whether the run had no step left to take."""
        return self.step >= self.state["total_steps"]


class Checkpoints:
    """Writes the checkpoints of one run.

    Args:
        run: the run's folder.
        settings: of the run, to compare with those it is resumed with.
        keep: how many of the newest stay; that of the best evaluation stays as well.
    """

    def __init__(self, run: Path, settings: dict[str, Any], keep: int) -> None:
        self.folder = run / CHECKPOINTS
        self.settings = settings
        self.keep = keep

    def write(self, run: RunState) -> None:
        """Write where ``run`` is, then remove what is not kept. To be called by all processes.

        Raises:
            OSError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        main = run.accelerator.is_main_process
        target = self.folder / f"step-{run.progress.step:08d}"
        with atomic_folder(target) if main else nullcontext(target) as folder:
            state = run.write(folder)
            if main:
                state |= {"format": FORMAT, "settings": self.settings}
                state["files"] = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
                state["sha256"] = _hash(state)
                (folder / STATE).write_text(_as_text(state) + "\n", encoding="utf-8")
        if main:
            self._remove_old(run.progress.best_step)

    def go_back_to(self, step: int) -> None:
        """Remove what a killed run left that came after ``step``: damaged checkpoints, and those half written."""
        newer = [folder for folder in _folders(self.folder) if folder.name > f"step-{step:08d}"]
        for folder in [*newer, *self.folder.glob(".step-*")]:
            shutil.rmtree(folder)

    def _remove_old(self, best_step: int | None) -> None:
        for folder in _folders(self.folder)[: -self.keep]:
            if best_step is None or folder.name != f"step-{best_step:08d}":
                shutil.rmtree(folder)


def find_checkpoint(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest intact checkpoint of a run; ``say`` is told of damaged ones that were passed over."""
    for folder in reversed(_folders(run / CHECKPOINTS)):
        try:
            return Checkpoint(folder, _read_state(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"{folder}: this checkpoint cannot be used ({error}); looking at the one before it")
    return None


def _read_state(folder: Path) -> dict[str, Any]:
    """The ``state.json`` of a checkpoint; raises ``ValueError`` and others if anything is not as it was written."""
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if state.pop("sha256", None) != _hash(state):
        raise ValueError(f"{STATE} is damaged: its SHA-256 is not the one in it")
    if state["format"] != FORMAT:
        raise ValueError(f"it is of format {state['format']}, and this version of sightbridge reads {FORMAT}")
    for name, sha256 in state["files"].items():
        if Path(name).name != name or file_hash(folder / name) != sha256:
            raise ValueError(f"{name} is damaged: its SHA-256 is not the one in {STATE}")
    return state


def _hash(state: dict[str, Any]) -> str:
    return hashlib.sha256(_as_text(state).encode()).hexdigest()


def _as_text(state: dict[str, Any]) -> str:
    return json.dumps(state, indent=1, allow_nan=False)


def _folders(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())
