"""The learning rate of every optimiser step."""

from __future__ import annotations

import math

from sightbridge.config.training import OptimSettings


def warmup_length(optim: OptimSettings, total_steps: int) -> int:
    """Optimiser steps of warm-up: given as such, or as a share of all steps (rounded up, as in the seeds)."""
    if optim.warmup_steps is not None:
        return optim.warmup_steps
    return math.ceil(total_steps * (optim.warmup_ratio or 0.0))


def learning_rate(
    step: int,
    total_steps: int,
    optim: OptimSettings,
    peak: float | None = None,
    steps_per_epoch: float | None = None,
    accumulation: int = 1,
) -> float:
    """Learning rate of the step with index ``step`` (0 = first).

    Linear from ``warmup_lr`` to the peak; then cosine or linear down to ``min_lr``, or constant. As in LAVIS and in
    transformers' schedules, the first step of a warm-up runs at ``warmup_lr`` itself and the step after the warm-up
    at the peak. ``peak`` is a part's own learning rate, where it has one; a part slower than ``min_lr`` stays put.

    With ``warmup_unit: batch`` the warm-up goes by batches, ``accumulation`` of them a step, and a step runs at the
    rate of its last batch: LAVIS sets the rate before every batch, and the optimiser uses the one it finds in the end.

    ``lavis_epoch_cosine`` is LAVIS' ``linear_warmup_cosine_lr``, and needs ``steps_per_epoch``: the warm-up is part of
    the first epoch and ends with it, finished or not; every later epoch has one learning rate, the cosine's at its
    beginning.
    """
    peak = optim.lr if peak is None else peak
    floor = min(optim.min_lr, peak)
    warmup, warmed = float(warmup_length(optim, total_steps)), float(step)
    if optim.warmup_unit == "batch" and optim.warmup_steps is not None:
        warmup, warmed = warmup / accumulation, step + 1 - 1 / accumulation
    if optim.schedule == "lavis_epoch_cosine":
        assert steps_per_epoch is not None, "this schedule goes by epochs"
        epoch = int(step / steps_per_epoch + 1e-9)
        if epoch == 0:
            return min(peak, optim.warmup_lr + (peak - optim.warmup_lr) * warmed / warmup) if warmup else peak
        epochs = max(1, math.ceil(total_steps / steps_per_epoch - 1e-6))
        return (peak - floor) * 0.5 * (1 + math.cos(math.pi * epoch / epochs)) + floor
    if warmed < warmup:
        return optim.warmup_lr + (peak - optim.warmup_lr) * warmed / warmup
    progress = min(1.0, max(0.0, step - warmup) / max(1.0, total_steps - warmup))
    match optim.schedule:
        case "cosine":
            return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return floor + (peak - floor) * (1 - progress)
        case "constant":
            return peak
