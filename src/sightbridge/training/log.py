"""What a run writes down while it trains: a line of JSON per logged step, optionally TensorBoard, a progress bar."""

from __future__ import annotations

import json
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

from sightbridge.errors import SettingsError
from sightbridge.training.step import StepResult


class Meter:
    """Sums what steps report between two log lines."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self._started = time.perf_counter()
        self._waited = 0.0
        self._sums: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._samples = 0
        self._grad_norm = 0.0

    def add(self, result: StepResult, waited: float) -> None:
        """Count a step that waited ``waited`` seconds for its data."""
        self._waited += waited
        self._sums.update({name: loss * result.counts[name] for name, loss in result.losses.items()})
        self._counts.update(result.counts)
        self._samples += result.samples
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
            "loss": sum(losses.values()),
            **(losses if len(losses) > 1 else {}),
            "grad_norm": self._grad_norm,
            "samples_per_second": self._samples / seconds,
            "target_tokens_per_second": self._counts.total() / seconds,
            "data_wait": self._waited / seconds,
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

    Only the main process writes; the others keep quiet. Raises ``SettingsError`` if the tensorboard package is missing.
    """

    def __init__(self, folder: Path, total_steps: int, *, main_process: bool, tensorboard: bool, title: str) -> None:
        self._main = main_process
        self.history: list[dict[str, Any]] = []
        self._file = self._board = self._progress = None
        if main_process:
            folder.mkdir(parents=True, exist_ok=True)
            self._board = _tensorboard_writer(folder) if tensorboard else None
            self._file = (folder / "log.jsonl").open("w", encoding="utf-8")
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
            self._task = self._progress.add_task(title, total=total_steps, note="")

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

    def advance(self) -> None:
        """Move the progress bar by one step."""
        if self._progress:
            self._progress.advance(self._task)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write a line: ``kind`` is ``train`` or ``evaluation``, ``step`` the number of optimiser steps taken."""
        line = {"kind": kind, "step": step, **values}
        self.history.append(line)
        if self._file and self._progress:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            if kind == "train":
                note = f"loss {values['loss']:.3f}  {values['samples_per_second']:.0f} samples/s"
                self._progress.update(self._task, note=note)
        if self._board:
            for key, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{key}", value, step)


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingsError(
            "training.tensorboard=true needs the tensorboard package: pip install 'sightbridge[train]'",
            key="training.tensorboard",
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
