"""The training loop: batches in, optimiser steps, log lines, evaluations and checkpoints out."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn

from sightbridge.config.training import OptimSettings, Precision, TrainingSettings
from sightbridge.errors import DataError, SettingsError, SightbridgeError
from sightbridge.models.memory import memory_settings
from sightbridge.training.checkpoints import Checkpoint, Checkpoints
from sightbridge.training.log import Meter, RunLog
from sightbridge.training.milestones import Evaluate, Milestones, Save, due
from sightbridge.training.optim import build_optimizer
from sightbridge.training.schedule import learning_rate
from sightbridge.training.sharding import launcher_options, prepare, use_launcher
from sightbridge.training.state import Progress, RunState, Stateful
from sightbridge.training.step import StepResult, TrainingBatch, training_step


class Batches(Protocol):
    """What the loop trains on: batches by epoch, this process's share of them."""

    @property
    def batches_per_epoch(self) -> float:
        """Batches per epoch; not a whole number where a batch may run over an epoch's end."""
        ...

    def epoch(self, number: int, skip: int = 0) -> Iterable[TrainingBatch]:
        """The batches of one epoch but for the first ``skip``, in an order fixed by the seed and the epoch's number."""
        ...


MOST_OVERFLOWS = 20
"""Steps in a row that fp16's gradient may overflow in: by then the loss is scaled by 2^-4 instead of 2^16."""


def train(
    model: nn.Module,
    batches: Batches,
    training: TrainingSettings,
    optim: OptimSettings,
    folder: Path,
    *,
    evaluate: Evaluate | None = None,
    save: Save | None = None,
    checkpoints: Checkpoints | None = None,
    resume: Checkpoint | None = None,
    data: Stateful | None = None,
    title: str = "training",
    accelerator: Accelerator | None = None,
) -> list[dict[str, Any]]:
    """Train the parts of ``model`` that require gradients and return the log's lines.

    One process or many, as ``accelerate launch`` or ``torchrun`` started it. Writes ``log.jsonl`` into ``folder``.
    ``evaluate`` and ``save`` run every ``training.evaluate_every`` / ``save_every`` steps and after the last; with
    ``training.best``, ``save`` runs after an evaluation that is better than all before it, and only then.
    Leaves the model in evaluation mode.

    Args:
        checkpoints: writes one every ``save_every`` steps, after the last, and after the best evaluation.
        resume: go on where this one was written, as if the run had never stopped.
        data: what else the batches and evaluations remember from step to step.

    Raises ``DataError`` if there is no batch, ``CheckpointError`` if ``resume`` does not fit, ``SettingsError`` for a
    ``best`` that no evaluation has, ``SightbridgeError`` if the loss is not finite.
    """
    accelerator = accelerator or make_accelerator(training.precision)
    training = with_accumulation(training, accelerator.num_processes)
    state = _start(model, batches, training, optim, accelerator, data, resume)
    progress, meter, prepared, total = state.progress, state.meter, state.prepared, state.total_steps
    main_process = accelerator.is_main_process
    log = RunLog(
        folder, total, main_process=main_process, tensorboard=training.tensorboard, title=title, step=progress.step
    )
    milestones = Milestones(training, state, log, evaluate, save, checkpoints)
    stream = _step_batches(batches, training.accumulation, progress)
    bare = accelerator.unwrap_model(prepared.model)
    with log, memory_settings(bare, training.parts, training.precision):
        prepared.model.train()
        with meter.paused():
            milestones.before_first_step()
        while progress.step < total:
            rates = set_rates(prepared.optimizer, state, optim, training.accumulation)
            result, waited = _take_step(state, stream, optim)
            meter.add(result, waited)
            log.advance()
            if progress.step == total or due(progress.step, training.log_every):
                log.write("train", progress.step, meter.summary() | rates)
                meter.reset()
            with meter.paused():
                milestones.after_step()
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(prepared.model, keep_fp32_wrapper=False).eval()  # takes autocast off the model's forward
    return log.history


def _start(
    model: nn.Module,
    batches: Batches,
    training: TrainingSettings,
    optim: OptimSettings,
    accelerator: Accelerator,
    data: Stateful | None,
    resume: Checkpoint | None,
) -> RunState:
    """Model and optimiser ready for the first step, or for the one after the checkpoint."""
    total = total_steps(training, batches.batches_per_epoch)
    prepared = prepare(accelerator, model, build_optimizer(model, training.parts, optim), training, optim)
    set_seed(training.seed, device_specific=True)  # dropout must not repeat itself on every process
    state = RunState(accelerator, prepared, Progress(), Meter(), total, batches.batches_per_epoch, data)
    if resume:
        state.read(resume.folder, resume.state)
        if state.progress.step >= total:
            raise SettingsError(
                f"the run has taken {state.progress.step} steps already; give more than that to go on",
                key="training.steps",
            )
    return state


def make_accelerator(precision: Precision) -> Accelerator:
    """Find the devices and processes to train on. A process may do so again, also with another precision.

    Raises:
        SettingsError: the machine cannot train in this precision.
    """
    # shared by all accelerators, it would refuse the second run's precision and forget its FSDP
    AcceleratorState._reset_state(reset_partial_state=True)
    # without being told so, accelerate takes several processes on a machine without a GPU for single ones
    no_gpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    if precision == "fp16" and no_gpu:
        raise SettingsError("fp16 needs a GPU, and there is none here; use fp32 or bf16", key="training.precision")
    half = "no" if precision == "fp32" else precision
    return use_launcher(Accelerator(mixed_precision=half, **launcher_options(no_gpu)))


def with_accumulation(training: TrainingSettings, processes: int) -> TrainingSettings:
    """Settings with the accumulation that ``global_batch`` asks for, on this number of processes.

    Raises:
        SettingsError: it is no multiple of the records that all processes take at a time.
    """
    if training.global_batch is None:
        return training
    at_once = training.batch_size * processes
    accumulation, rest = divmod(training.global_batch, at_once)
    if rest or not accumulation:
        raise SettingsError(
            f"{training.global_batch} records per step cannot be dealt out to {processes} processes with "
            f"{training.batch_size} records each at a time: it must be a multiple of {at_once}. Change it or "
            "training.batch_size.",
            key="training.global_batch",
        )
    return training.model_copy(update={"accumulation": accumulation, "global_batch": None})


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


def set_rates(
    optimizer: torch.optim.Optimizer, state: RunState, optim: OptimSettings, accumulation: int
) -> dict[str, float]:
    """Set every group's learning rate for the next step; returns each part's (its fastest layer's)."""
    rates: dict[str, float] = {}
    steps_per_epoch = state.batches_per_epoch / accumulation
    for group in optimizer.param_groups:
        rate = learning_rate(
            state.progress.step, state.total_steps, optim, group["peak_lr"], steps_per_epoch, accumulation
        )
        group["lr"] = rate * group["lr_scale"]
        name = f"lr/{group['name'].split('/')[0]}"
        rates[name] = max(rates.get(name, 0.0), group["lr"])
    return rates


def _step_batches(batches: Batches, accumulation: int, place: Progress) -> Iterator[list[TrainingBatch]]:
    """Endless groups of ``accumulation`` batches, epoch after epoch, from ``place`` on; it moves with them."""

    def stream() -> Iterator[TrainingBatch]:
        while True:
            for batch in batches.epoch(place.epoch, place.taken):
                place.taken += 1
                yield batch
            place.epoch, place.taken = place.epoch + 1, 0

    endless = stream()
    while True:
        yield list(itertools.islice(endless, accumulation))


def _take_step(
    state: RunState, stream: Iterator[list[TrainingBatch]], optim: OptimSettings
) -> tuple[StepResult, float]:
    """One optimiser step on the next batches, and the seconds spent waiting for them."""
    asked = time.perf_counter()
    micro_batches = next(stream)
    waited = time.perf_counter() - asked
    prepared = state.prepared
    result = training_step(state.accelerator, prepared.model, prepared.optimizer, micro_batches, optim.clip_norm)
    state.progress.step += 1
    _count_overflows(state.progress, result)
    return result, waited


def _count_overflows(progress: Progress, result: StepResult) -> None:
    """Stop when lowering the loss scale does not help any more."""
    progress.overflows = progress.overflows + 1 if result.skipped else 0
    if progress.overflows >= MOST_OVERFLOWS:
        raise SightbridgeError(
            f"the gradient overflowed float16 in {MOST_OVERFLOWS} steps in a row, up to step {progress.step}, although "
            "the loss was scaled down each time: the model computes numbers that float16 cannot hold. Use "
            "training.precision=bf16 or fp32, or keep what overflows in float32 (training.parts.PART.fp32=true)."
        )
