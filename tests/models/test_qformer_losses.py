"""Contrastive loss and hard negatives."""

import pytest
import torch
from torch.nn import functional as F

from sightbridge.models.qformer_losses import best_query, contrastive_loss, draw_negatives, match_loss


def test_a_picture_is_as_similar_as_its_best_query():
    images, texts = torch.randn(3, 4, 5), torch.randn(2, 5)
    expected = [[max(float(query @ text) for query in image) for text in texts] for image in images]
    assert torch.allclose(best_query(images, texts), torch.tensor(expected))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_contrastive_loss_with_one_positive_each_is_cross_entropy(smoothing):
    first, second, target = torch.randn(3, 5), torch.randn(3, 5), torch.tensor([1, 2, 3])
    same = F.one_hot(target, 5).bool()
    expected = sum(
        F.cross_entropy(logits, target, reduction="sum", label_smoothing=smoothing) for logits in (first, second)
    )
    assert torch.allclose(contrastive_loss(first, second, same, smoothing), expected / 2)


def test_several_positives_share_the_target():
    logits, same = torch.randn(2, 4), torch.tensor([[True, False, True, False], [False, True, False, False]])
    log = logits.log_softmax(dim=1)
    target = torch.tensor([[0.475, 0.025, 0.475, 0.025], [0.025, 0.925, 0.025, 0.025]])
    assert torch.allclose(contrastive_loss(logits, logits, same, 0.1), -(log * target).sum())


def test_negatives_are_drawn_from_the_softmax_without_the_same_picture():
    logits, same = torch.tensor([[9.0, 1.0, 0.0, 2.0]]), torch.tensor([[True, False, False, False]])
    rows = 20_000
    drawn, exists = draw_negatives(logits.expand(rows, -1), same.expand(rows, -1))
    expected = torch.tensor([0.0, *torch.softmax(logits[0, 1:], dim=0).tolist()])
    assert exists.all()
    assert torch.allclose(drawn.bincount(minlength=4) / rows, expected, atol=0.015)
    assert draw_negatives(logits, same, hardest=True)[0].tolist() == [3]


def test_negatives_come_from_the_global_random_state():
    logits, same = torch.randn(8, 8), torch.eye(8, dtype=torch.bool)
    torch.manual_seed(3)
    first, second = draw_negatives(logits, same)[0], draw_negatives(logits, same)[0]
    torch.manual_seed(3)
    assert torch.equal(draw_negatives(logits, same)[0], first)
    assert not torch.equal(first, second)


def test_nothing_to_draw_from():
    same = torch.tensor([[True, True], [True, False]])
    drawn, exists = draw_negatives(torch.randn(2, 2), same)
    assert exists.tolist() == [False, True]
    assert drawn[1] == 1
    assert 0 <= drawn[0] < 2


def test_pairs_that_do_not_count_add_nothing():
    logits, labels = torch.randn(3, 2, requires_grad=True), torch.tensor([1, 0, 0])
    loss = match_loss(logits, labels, torch.tensor([True, False, True]))
    loss.backward()
    assert torch.allclose(loss, F.cross_entropy(logits[[0, 2]], labels[[0, 2]], reduction="sum"))
    assert logits.grad is not None and logits.grad[1].abs().sum() == 0
