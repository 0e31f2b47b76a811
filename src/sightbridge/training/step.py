"""One optimiser step: several micro-batches, one division by the target tokens of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

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
    (weighting micro-batches alike instead is the accumulation defect that transformers had until October 2024).

    ``clip_norm``: largest gradient norm, ``None`` = no clipping.

    Raises ``SightbridgeError``, before any weight changes, if the loss or the gradient is not finite.
    """
    device = accelerator.device
    counts = torch.tensor([sum(b.n_target_tokens for b in batches), sum(map(len, batches))], device=device)
    counts = accelerator.reduce(counts, "sum")
    target_tokens, samples = (int(c) for c in counts.tolist())  # type: ignore[union-attr]

    losses = []
    for i, batch in enumerate(batches):
        with nullcontext() if i == len(batches) - 1 else accelerator.no_sync(model):
            with accelerator.autocast():
                loss_sum, count = model(batch.to(device))
            assert count == batch.n_target_tokens, "the model and the batch count targets differently"
            # DistributedDataParallel averages gradients over processes: undo it, the division is ours
            accelerator.backward(loss_sum * (accelerator.num_processes / max(1, target_tokens)))
        losses.append(loss_sum.detach().float())

    trained = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = accelerator.clip_grad_norm_(trained, clip_norm if clip_norm is not None else float("inf"))
    loss = float(accelerator.reduce(torch.stack(losses).sum(), "sum")) / max(1, target_tokens)  # type: ignore[arg-type]
    norm = float(grad_norm) if grad_norm is not None else 0.0
    _check_finite(loss, norm, batches, losses)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, norm, target_tokens, samples)


def _check_finite(loss: float, grad_norm: float, batches: Sequence[Batch], losses: Sequence[Tensor]) -> None:
    """Stop at a loss or gradient that is not finite, naming the records of the micro-batches it can come from."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    not_finite = [batch for batch, own in zip(batches, losses, strict=True) if not own.isfinite()]
    names = [name for batch in not_finite or batches for name in batch.ids]
    raise SightbridgeError(
        f"the loss ({loss}) or the gradient norm ({grad_norm}) is not finite, so the step was not taken. "
        f"Records: {', '.join(names)}. Lower optim.lr, lengthen the warm-up, or use training.precision=fp32."
    )
