"""The chunked loss: same number and gradients as the plain one, and never all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sightbridge.batch import IGNORE_INDEX
from sightbridge.models.losses import LOGITS_AT_ONCE, target_loss

WIDTH, VOCABULARY = 8, 30


def example() -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    hidden = torch.randn(3, 9, WIDTH, requires_grad=True)
    labels = torch.randint(VOCABULARY, (3, 9))
    labels[0, :4] = labels[2, 5:] = IGNORE_INDEX
    return hidden, labels, nn.Linear(WIDTH, VOCABULARY)


@pytest.mark.parametrize("chunk", [1, 4, 18, 19, 1000, None])
def test_any_chunk_gives_the_plain_loss_and_gradients(chunk: int | None) -> None:
    hidden, labels, head = example()
    plain = F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    expected = torch.autograd.grad(plain, [hidden, head.weight, head.bias])
    loss = target_loss(hidden, labels, head, VOCABULARY, chunk)
    gradients = torch.autograd.grad(loss.sum, [hidden, head.weight, head.bias])
    assert loss.count == 19
    assert loss.sum.item() == pytest.approx(plain.item(), rel=1e-6)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_logits_exist_for_targets_only_and_one_chunk_at_a_time() -> None:
    hidden, labels, head = example()
    rows = []
    head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    loss = target_loss(hidden, labels, head, VOCABULARY, chunk=7)
    assert rows == [7, 7, 5]
    loss.sum.backward()
    assert rows == [7, 7, 5] * 2 or rows == [7, 7, 5, 5, 7, 7], "recomputed chunk by chunk in the backward pass"


def test_the_default_chunk_follows_the_vocabulary() -> None:
    rows = []

    def head(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return hidden

    target_loss(torch.randn(1, 10, WIDTH), torch.zeros(1, 10, dtype=torch.long), head, vocabulary=LOGITS_AT_ONCE // 4)
    assert rows == [4, 4, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_behind_a_frozen_head_logits_are_made_once(dtype: torch.dtype, smoothing: float) -> None:
    hidden, labels, head = example()
    hidden, head = hidden.detach().to(dtype).requires_grad_(), head.to(dtype).requires_grad_(False)
    rows = []
    head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    results = []
    for frozen in (False, True):
        loss = target_loss(hidden, labels, head, VOCABULARY, 7, smoothing, frozen_head=frozen)
        (gradient,) = torch.autograd.grad(0.5 * loss.sum, hidden)
        results.append((loss.sum, gradient, len(rows)))
    (plain, expected, twice), (ours, gradient, both) = results
    assert (twice, both) == (6, 9)
    assert torch.allclose(ours, plain) and torch.allclose(
        gradient, expected, **({"rtol": 2e-2} if dtype is torch.bfloat16 else {"atol": 1e-6})
    )
    assert gradient.dtype == dtype


def test_small_gradients_are_not_lost_in_float16() -> None:
    """Behind a frozen head too, the loss is scaled before its gradient is made."""
    hidden = (torch.randn(1, 8, WIDTH) * 1e-3).half().requires_grad_()
    head = nn.Linear(WIDTH, VOCABULARY).half().requires_grad_(False)
    head.weight.data *= 1e-6
    labels = torch.randint(VOCABULARY, (1, 8))
    loss = target_loss(hidden, labels, head, VOCABULARY, 3, frozen_head=True)
    (gradient,) = torch.autograd.grad(loss.sum * 2.0**14, hidden)
    assert gradient.abs().min() > 0


def test_no_target_is_a_zero_with_a_graph() -> None:
    hidden, labels, head = example()
    loss = target_loss(hidden, torch.full_like(labels, IGNORE_INDEX), head, VOCABULARY)
    assert (loss.sum.item(), loss.count) == (0.0, 0)
    loss.sum.backward()
    assert hidden.grad.abs().max() == 0


def test_half_precision_sums_in_float32() -> None:
    hidden, labels, head = example()
    loss = target_loss(hidden.bfloat16(), labels, head.bfloat16(), VOCABULARY)
    assert loss.sum.dtype == torch.float32
