"""The training loss: summed cross entropy, with logits only at targets and never all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sightbridge.batch import IGNORE_INDEX

LOGITS_AT_ONCE = 2**26
"""Most logits that exist at one time (256 MB in float32): 268 tokens of mT5's vocabulary of 250k, 2097 of Llama's."""


class Loss(NamedTuple):
    """A summed loss and the number of targets (tokens; pairs, in a contrastive loss) it sums over.

    The division happens once per optimiser step, by the count over all processes and accumulated batches, so the
    result does not depend on how records were dealt out to batches.
    """

    sum: Tensor
    count: int


def target_loss(
    hidden: Tensor,
    labels: Tensor,
    head: Callable[[Tensor], Tensor],
    vocabulary: int,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    frozen_head: bool = False,
) -> Loss:
    """Sum the cross entropy over all targets.

    Args:
        hidden: hidden states (B, L, W), each one predicting the label at its own position (shift beforehand).
        labels: (B, L), ``IGNORE_INDEX`` where there is no target.
        head: hidden states (M, W) to logits (M, V).
        vocabulary: V, to size the chunks.
        chunk: targets per chunk; default: as many as ``LOGITS_AT_ONCE`` allows.
        label_smoothing: share of the target that is spread over the vocabulary.
        frozen_head: whether no weight of the head trains and all of them are at hand; chunks then cost no more than
            all logits at once would.

    Returns:
        The loss, in float32. Without a single target it is zero, but still part of the graph, with the head: other
        processes may be waiting for the head's gradients.
    """
    is_target = labels != IGNORE_INDEX
    hidden, labels = hidden[is_target], labels[is_target]
    count = len(labels)
    chunk = chunk or max(1, LOGITS_AT_ONCE // vocabulary)
    if count <= chunk:
        return Loss(_summed_cross_entropy(hidden, labels, head, label_smoothing), count)
    if frozen_head and hidden.requires_grad and not _in_float16(hidden):
        return Loss(_FrozenHeadLoss.apply(hidden, labels, head, chunk, label_smoothing), count)
    # Checkpointing recomputes a chunk's logits in the backward pass instead of keeping them.
    sums = [
        checkpoint(_summed_cross_entropy, part, part_labels, head, label_smoothing, use_reentrant=False)
        for part, part_labels in zip(hidden.split(chunk), labels.split(chunk), strict=True)
    ]
    return Loss(torch.stack(sums).sum(), count)


def _summed_cross_entropy(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], label_smoothing: float
) -> Tensor:
    return F.cross_entropy(head(hidden).float(), labels, reduction="sum", label_smoothing=label_smoothing)


class _FrozenHeadLoss(torch.autograd.Function):
    """Chunks of a loss whose gradient is made with them: all it takes is that of the hidden states.

    So no logits are kept, none are made twice, and a chunk's gradient takes the place of its logits (as in Liger
    Kernel's fused loss, arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: Any, chunk: int, label_smoothing: float) -> Tensor:
        """Sum the loss of hidden states (M, W), and keep its gradient: (M, W)."""
        total, gradients = hidden.new_zeros((), dtype=torch.float32), []
        for part, part_labels in zip(hidden.split(chunk), labels.split(chunk), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                logits = head(part)
            loss, of_logits = _cross_entropy_in_place(logits.detach().float(), part_labels, label_smoothing)
            gradients += torch.autograd.grad(logits, part, of_logits.to(logits.dtype))
            total += loss
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient that was kept."""
        (of_hidden,) = ctx.saved_tensors
        return (of_hidden * gradients[0]).to(of_hidden.dtype), None, None, None, None


def _cross_entropy_in_place(logits: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of logits (M, V), and its gradient, softmax minus targets, which overwrites them."""
    labels, spread = labels[:, None], label_smoothing / logits.shape[1]
    logits -= logits.amax(dim=1, keepdim=True)
    target_logits = (1 - label_smoothing) * logits.gather(1, labels) + label_smoothing * logits.mean(1, keepdim=True)
    sums = logits.exp_().sum(dim=1, keepdim=True)
    loss = (sums.log() - target_logits).sum()
    logits /= sums
    logits -= spread
    logits.scatter_add_(1, labels, logits.new_full(labels.shape, label_smoothing - 1))
    return loss, logits


def _in_float16(hidden: Tensor) -> bool:
    """Whether gradients are float16: made before the loss is scaled up, small ones would be lost."""
    device = hidden.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return torch.float16 in (autocast, hidden.dtype)
