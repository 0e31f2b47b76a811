"""What a run writes down while it trains: a line of JSON per logged step, optionally TensorBoard, a progress bar."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sightbridge.config.load import write_atomically
from sightbridge.errors import SettingsError
from sightbridge.training.step import StepResult

LOG = "log.jsonl"
"""The log in a run's folder."""
COUNTED = ("waited", "sums", "counts", "samples", "grad_norm", "skipped")
"""What a meter holds besides the time."""


class Meter:
    """Sums what steps report between two log lines."""

    def __init__(self) -> None:
        self.reset()

    def state_dict(self) -> dict[str, Any]:
        """What was counted since the last log line, to be written as JSON."""
        seconds = time.perf_counter() - self._started
        counted = {name: getattr(self, f"_{name}") for name in COUNTED}
        return {"seconds": seconds, **counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting where ``state_dict`` was called."""
        self._started = time.perf_counter() - state["seconds"]
        for name in COUNTED:
            old = getattr(self, f"_{name}")
            setattr(self, f"_{name}", type(old)(state[name]))

    def reset(self) -> None:
        """Start a new interval."""
        self._started = time.perf_counter()
        self._waited = 0.0
        self._sums: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._samples = 0
        self._grad_norm = 0.0
        self._skipped = 0

    def add(self, result: StepResult, waited: float) -> None:
        """Count a step that waited ``waited`` seconds for its data. Losses of a skipped one mean nothing."""
        self._waited += waited
        self._samples += result.samples
        if result.skipped:
            self._skipped += 1
            return
        self._sums.update({name: loss * result.counts[name] for name, loss in result.losses.items()})
        self._counts.update(result.counts)
        self._grad_norm = result.grad_norm

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside, on evaluations and checkpoints; what was counted before stays."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def summary(self) -> dict[str, float]:
        """Loss per target over the interval, rates per second, share of time spent waiting for data, memory.

        With several losses, ``loss`` is the sum of their means, and each one stands under ``loss/NAME``.
        """
        seconds = time.perf_counter() - self._started
        losses = {f"loss/{name}": loss_sum / max(1, self._counts[name]) for name, loss_sum in self._sums.items()}
        return {
            "loss": sum(losses.values()) if losses else math.nan,
            **(losses if len(losses) > 1 else {}),
            "grad_norm": self._grad_norm,
            "samples_per_second": self._samples / seconds,
            "target_tokens_per_second": self._counts.total() / seconds,
            "data_wait": self._waited / seconds,
            **({"skipped_steps": self._skipped} if self._skipped else {}),
            "memory_gb": peak_memory_gb(),
        }


def peak_memory_gb() -> float:
    """Peak memory so far: of the GPU if there is one, else of this process. Gigabytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class RunLog:
    """Writes ``log.jsonl`` (always), TensorBoard files (if asked) and a progress bar (on stderr, if it is a terminal).

    Only the main process writes; the others keep quiet. A run that goes on after ``step`` steps keeps the lines up to
    there. Raises ``SettingsError`` if the tensorboard package is missing.
    """

    def __init__(
        self, folder: Path, total_steps: int, *, main_process: bool, tensorboard: bool, title: str, step: int = 0
    ) -> None:
        path = folder / LOG
        self.history: list[dict[str, Any]] = read_log(path, step) if step else []
        self._file = self._board = self._progress = None
        if main_process:
            folder.mkdir(parents=True, exist_ok=True)
            self._board = _tensorboard_writer(folder, step) if tensorboard else None
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in self.history))
            self._file = path.open("a", encoding="utf-8")
            terminal = Console(stderr=True)
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=terminal,
                disable=not terminal.is_terminal,
            )
            self._task = self._progress.add_task(title, total=total_steps, completed=step, note="")

    def __enter__(self) -> RunLog:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()
        if self._board:
            self._board.close()
        if self._file:
            self._file.close()

    def flush(self) -> None:
        """Have the lines on the disk, before a checkpoint that comes after them."""
        if self._file:
            os.fsync(self._file.fileno())

    def advance(self) -> None:
        """Move the progress bar by one step."""
        if self._progress:
            self._progress.advance(self._task)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write a line: ``kind`` is ``train`` or ``evaluation``, ``step`` the number of optimiser steps taken."""
        values = {key: _json_value(value) for key, value in values.items()}
        line = {"kind": kind, "step": step, **values}
        self.history.append(line)
        if self._file and self._progress:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            if kind == "train":
                loss = "none" if values["loss"] is None else f"{values['loss']:.3f}"
                note = f"loss {loss}  {values['samples_per_second']:.0f} samples/s"
                self._progress.update(self._task, note=note)
        if self._board:
            for key, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{key}", value, step)


def read_log(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Return the lines of a ``log.jsonl`` up to a step; a line that a kill cut off is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["step"] <= last_step:
            lines.append(line)
    return lines


def _json_value(value: Any) -> Any:
    """The value, with null for numbers that are not finite: JSON has none of them, and an evaluation may be NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(inner) for inner in value]
    return value


def _tensorboard_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingsError(
            "training.tensorboard=true needs the tensorboard package: pip install 'sightbridge[train]'",
            key="training.tensorboard",
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
