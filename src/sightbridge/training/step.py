"""One optimiser step: several micro-batches, one division of every loss by the targets of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sightbridge.errors import SightbridgeError
from sightbridge.training.sharding import backward, clip_gradients, take_step


class TrainingBatch(Protocol):
    """What a step needs to know of a batch; the model knows the rest."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Record identifiers, for messages."""
        ...

    @property
    def loss_counts(self) -> dict[str, int]:
        """What each of the model's losses sums over, known before the forward pass; every batch has the same keys."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device, /) -> Any:
        """Move every tensor."""
        ...


class StepResult(NamedTuple):
    """What a step measured, over all processes: mean of each loss, gradient norm before clipping, counts.

    ``skipped``: fp16's gradient overflowed, so no weight changed; the losses may not be finite then.
    """

    losses: dict[str, float]
    grad_norm: float
    counts: dict[str, int]
    samples: int
    skipped: bool = False

    @property
    def loss(self) -> float:
        """The sum of the losses' means, which is what the step goes down on."""
        return sum(self.losses.values())


def training_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[TrainingBatch],
    clip_norm: float | None,
) -> StepResult:
    """Run forward and backward over ``batches``, then one optimiser step.

    The model returns its losses by name (``models.losses.Loss``). Every micro-batch's loss is a *sum* over its targets;
    the gradient of each is divided once by the number of its targets in the whole step, over micro-batches and
    processes. So 1 x 32, 4 x 8 and 4 processes x 8 are the same step (weighting micro-batches alike instead is the
    accumulation defect that transformers had until October 2024).

    ``clip_norm``: largest gradient norm, ``None`` = no clipping.

    In fp16 a gradient that is not finite is an overflow of the scaled loss: the step is skipped and the scale lowered.
    Raises ``SightbridgeError``, before any weight changes, if the loss or, in other precisions, the gradient is not
    finite.
    """
    counts, samples = _count(accelerator, batches)
    sums = []
    for i, batch in enumerate(batches):
        with nullcontext() if i == len(batches) - 1 else accelerator.no_sync(model):
            with accelerator.autocast():
                losses = model(batch.to(accelerator.device))
            own = {name: loss.count for name, loss in losses.items()}
            assert own == batch.loss_counts, "the model and the batch count targets differently"
            each = [loss.sum / max(1, counts[name]) for name, loss in losses.items()]
            # all kinds of data-parallel training average gradients over processes: undo it, the division is ours
            backward(accelerator, torch.stack(each).sum() * accelerator.num_processes, last=i == len(batches) - 1)
        sums.append(torch.stack([losses[name].sum.detach().float() for name in counts]))

    trained = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = clip_gradients(accelerator, trained, clip_norm)
    totals = accelerator.reduce(torch.stack(sums).sum(0), "sum").tolist()  # type: ignore[union-attr]
    means = {name: total / max(1, counts[name]) for name, total in zip(counts, totals, strict=True)}
    skipped = accelerator.scaler is not None and not math.isfinite(grad_norm)
    result = StepResult(means, grad_norm, counts, samples, skipped)
    if not skipped:
        _check_finite(result, batches, sums)
    late_norm = take_step(accelerator, optimizer)
    return result if late_norm is None else result._replace(grad_norm=late_norm)


def _count(accelerator: Accelerator, batches: Sequence[TrainingBatch]) -> tuple[dict[str, int], int]:
    """Targets of each loss, and samples, in the whole step over all processes."""
    names = list(batches[0].loss_counts)
    own = [sum(batch.loss_counts[name] for batch in batches) for name in names]
    numbers = torch.tensor([*own, sum(map(len, batches))], device=accelerator.device)
    *counts, samples = accelerator.reduce(numbers, "sum").tolist()  # type: ignore[union-attr]
    return dict(zip(names, counts, strict=True)), samples


def _check_finite(result: StepResult, batches: Sequence[TrainingBatch], sums: Sequence[Tensor]) -> None:
    """Stop at a loss or gradient that is not finite, naming the records of the micro-batches it can come from."""
    if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
        return
    not_finite = [batch for batch, own in zip(batches, sums, strict=True) if not own.isfinite().all()]
    names = [name for batch in not_finite or batches for name in batch.ids]
    raise SightbridgeError(
        f"the loss ({result.loss}) or the gradient norm ({result.grad_norm}) is not finite, so the step was not taken. "
        f"Records: {', '.join(names)}. Lower optim.lr, lengthen the warm-up, or use training.precision=fp32."
    )
