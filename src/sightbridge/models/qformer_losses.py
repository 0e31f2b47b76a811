"""Contrastive loss and hard negatives of BLIP-2's first stage, as functions of similarities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def best_query(images: Tensor, texts: Tensor) -> Tensor:
    """Similarity of every picture and text: (N, M), from image vectors (N, Q, P) and text vectors (M, P).

    A picture is as similar to a text as the most similar of its Q queries.
    """
    return torch.einsum("nqp,mp->nqm", images, texts).amax(dim=1)


def contrastive_loss(image_to_text: Tensor, text_to_image: Tensor, same: Tensor, smoothing: float) -> Tensor:
    """Sum over rows of the mean of both directions' cross entropies.

    Args:
        image_to_text: (B, G) logits of row b's picture against all G texts.
        text_to_image: (B, G) logits of row b's text against the pictures of all G rows.
        same: (B, G) bool, rows that have the same picture: they share the target evenly.
        smoothing: share of the target that is spread evenly over all G.
    """
    target = same / same.sum(dim=1, keepdim=True)
    target = target * (1 - smoothing) + smoothing / same.shape[1]
    losses = [-(F.log_softmax(logits, dim=1) * target).sum() for logits in (image_to_text, text_to_image)]
    return (losses[0] + losses[1]) / 2


@torch.no_grad()
def draw_negatives(logits: Tensor, same: Tensor, hardest: bool = False) -> tuple[Tensor, Tensor]:
    """Draw for each row one of the others, from the softmax of the logits.

    The largest logit after adding Gumbel noise is such a draw (Gumbel, 1954), and unlike ``torch.multinomial`` with
    checks or ``.item()`` it never makes the host wait for the device. The noise comes from the device's global random
    state, which a checkpoint of a run keeps.

    Args:
        logits: (B, G).
        same: (B, G) bool, what may not be drawn.
        hardest: take the largest logit instead.

    Returns:
        Numbers (B,) int64 from 0 to G - 1, and whether there was anything to draw from (B,) bool; where not, the
        number means nothing.
    """
    if not hardest:
        logits = logits - torch.empty_like(logits).exponential_().log()
    return logits.masked_fill(same, float("-inf")).argmax(dim=1), ~same.all(dim=1)


def match_loss(logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """Sum of the cross entropies of logits (M, 2) and labels (M,) where ``counted`` (M,) bool."""
    return (F.cross_entropy(logits.float(), labels, reduction="none") * counted).sum()
