"""The training loop: batches in, optimiser steps, log lines, evaluations and checkpoints out."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn

from sightbridge.config.training import OptimSettings, TrainingSettings
from sightbridge.errors import DataError
from sightbridge.models.memory import memory_settings
from sightbridge.training.log import Meter, RunLog
from sightbridge.training.optim import build_optimizer
from sightbridge.training.schedule import learning_rate
from sightbridge.training.sharding import asks_for_deepspeed, outside_training, prepare, use_launcher, whole_model
from sightbridge.training.step import TrainingBatch, training_step


class Batches(Protocol):
    """What the loop trains on: batches by epoch, this process's share of them."""

    @property
    def batches_per_epoch(self) -> float:
        """Batches per epoch; not a whole number where a batch may run over an epoch's end."""
        ...

    def epoch(self, number: int) -> Iterable[TrainingBatch]:
        """The batches of one epoch, in an order fixed by the seed and the epoch's number."""
        ...


Evaluate = Callable[[nn.Module, int], dict[str, Any]]
"""Called with the bare model (in evaluation mode) and the steps taken; what it returns goes into the log."""

Save = Callable[[nn.Module, int], None]
"""Called on the main process with the bare model (a copy if it is sharded) and the steps taken; writes atomically."""


def train(
    model: nn.Module,
    batches: Batches,
    training: TrainingSettings,
    optim: OptimSettings,
    folder: Path,
    *,
    evaluate: Evaluate | None = None,
    save: Save | None = None,
    title: str = "training",
    accelerator: Accelerator | None = None,
) -> list[dict[str, Any]]:
    """Train the parts of ``model`` that require gradients and return the log's lines.

    One process or many, as ``accelerate launch`` or ``torchrun`` started it. Writes ``log.jsonl`` into ``folder``.
    ``evaluate`` and ``save`` run every ``training.evaluate_every`` / ``save_every`` steps and after the last.
    Leaves the model in evaluation mode.

    Raises ``DataError`` if there is no batch, ``SightbridgeError`` if the loss is not finite.
    """
    total = total_steps(training, batches.batches_per_epoch)
    accelerator = accelerator or make_accelerator(training.precision)
    set_seed(training.seed)
    optimizer = build_optimizer(model, training.parts, optim)
    prepared = prepare(accelerator, model, optimizer, training, optim)
    wrapped, optimizer = prepared.model, prepared.optimizer
    bare = accelerator.unwrap_model(wrapped)

    log = RunLog(folder, total, main_process=accelerator.is_main_process, tensorboard=training.tensorboard, title=title)
    meter = Meter()
    with log, memory_settings(bare, training.parts, training.precision):
        wrapped.train()
        stream = _step_batches(batches, training.accumulation)
        for step in range(total):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, total, optim, group["peak_lr"])
            asked = time.perf_counter()
            micro_batches = next(stream)
            waited = time.perf_counter() - asked
            meter.add(training_step(accelerator, wrapped, optimizer, micro_batches, optim.clip_norm), waited)
            log.advance()

            done, last = step + 1, step + 1 == total
            if last or done % training.log_every == 0:
                rates = {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}
                log.write("train", done, meter.summary() | rates)
                meter.reset()
            with meter.paused():
                if evaluate and (last or _due(done, training.evaluate_every)):
                    with outside_training(accelerator, wrapped):
                        log.write("evaluation", done, _evaluate(evaluate, bare, done))
                if save and (last or _due(done, training.save_every)):
                    whole = whole_model(accelerator, prepared)
                    if whole is not None:
                        save(whole, done)
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False).eval()  # takes bf16's autocast off the model's forward
    return log.history


def make_accelerator(precision: Literal["fp32", "bf16"]) -> Accelerator:
    """Find the devices and processes to train on. A process may do so again, also with another precision."""
    AcceleratorState._reset_state()  # shared by all accelerators, it would refuse the second run's precision
    # without being told so, accelerate takes several processes on a machine without a GPU for single ones
    no_gpu = not torch.accelerator.is_available()
    accelerator = Accelerator(
        cpu=no_gpu and not asks_for_deepspeed(), mixed_precision={"fp32": "no", "bf16": "bf16"}[precision]
    )
    return use_launcher(accelerator)


def total_steps(training: TrainingSettings, batches_per_epoch: float) -> int:
    """Optimiser steps of a run. Epochs round up, so that every record is seen at least so many times.

    A step may run over an epoch's end: micro-batches left over at the end of one are in a step with the next one's.
    """
    if batches_per_epoch == 0:
        raise DataError("there is nothing to train on: the training sources hold no batch (see data.train)")
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None
    steps = training.epochs * batches_per_epoch / training.accumulation
    return max(1, math.ceil(round(steps, 6)))  # rounded first: 0.07 * 100 is 7.000000000000001


def _step_batches(batches: Batches, accumulation: int) -> Iterator[list[TrainingBatch]]:
    """Endless groups of ``accumulation`` batches, epoch after epoch."""
    stream = itertools.chain.from_iterable(batches.epoch(number) for number in itertools.count())
    while True:
        yield list(itertools.islice(stream, accumulation))


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _evaluate(evaluate: Evaluate, model: nn.Module, step: int) -> dict[str, Any]:
    model.eval()
    with torch.no_grad():
        values = evaluate(model, step)
    model.train()
    return values
