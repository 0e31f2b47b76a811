"""One optimiser step: several micro-batches, one division by the target tokens of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from sightbridge.batch import Batch
from sightbridge.errors import SightbridgeError


class StepResult(NamedTuple):
    """What a step measured, over all processes: mean loss per target token, gradient norm before clipping, counts."""

    loss: float
    grad_norm: float
    target_tokens: int
    samples: int


def training_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    clip_norm: float | None,
) -> StepResult:
    """Run forward and backward over ``batches``, then one optimiser step.

    Every micro-batch's loss is a *sum* over its target tokens; the gradient is divided once by the number of target
    tokens of the whole step, over micro-batches and processes. So 1 x 32, 4 x 8 and 4 processes x 8 are the same step
    (weighting micro-batches alike instead is the accumulation defect of transformers' issue 24725).

    Raises ``SightbridgeError``, before any weight changes, if the loss or the gradient is not finite.
    """
    device = accelerator.device
    counts = torch.tensor([sum(b.n_target_tokens for b in batches), sum(map(len, batches))], device=device)
    counts = accelerator.reduce(counts, "sum")
    target_tokens, samples = (int(c) for c in counts.tolist())  # type: ignore[union-attr]

    total = torch.zeros((), device=device)
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
            loss_sum, _ = model(batch.to(device))
        # DistributedDataParallel averages gradients over processes: undo it, the division is ours
        with nullcontext() if last else accelerator.no_sync(model):
            accelerator.backward(loss_sum * (accelerator.num_processes / max(1, target_tokens)))
        total += loss_sum.detach().float()

    trained = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = accelerator.clip_grad_norm_(trained, clip_norm if clip_norm is not None else float("inf"))
    loss = float(accelerator.reduce(total, "sum")) / max(1, target_tokens)  # type: ignore[arg-type]
    norm = float(grad_norm) if grad_norm is not None else 0.0
    _check_finite(loss, norm, batches)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, norm, target_tokens, samples)


def _check_finite(loss: float, grad_norm: float, batches: Sequence[Batch]) -> None:
    if torch.tensor([loss, grad_norm]).isfinite().all():
        return
    ids = [name for batch in batches for name in batch.ids]
    raise SightbridgeError(
        f"the loss ({loss}) or the gradient norm ({grad_norm}) is not finite, so the step was not taken. "
        f"Records: {', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}. "
        "Lower optim.lr, lengthen the warm-up, or use training.precision=fp32"
    )
