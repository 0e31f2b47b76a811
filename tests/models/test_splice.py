"""Image tokens into slots: order, gradients, and messages that name the record."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sightbridge.batch import Batch
from sightbridge.errors import DataError
from sightbridge.models.splice import check_slots, splice


def batch(slots: list[list[int]], images_per_row: list[int]) -> Batch:
    image_slots = torch.tensor(slots, dtype=torch.bool)
    ids = torch.zeros(image_slots.shape, dtype=torch.long)
    counts = torch.tensor(images_per_row)
    return Batch(ids, torch.ones_like(ids), image_slots, counts, ids=("cat.jpg", "dog.jpg"))


def test_pictures_fill_slots_in_reading_order() -> None:
    text = -torch.arange(1, 13).view(2, 6, 1).float()
    slots = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    pictures = torch.arange(6).view(3, 2, 1).float()
    filled = splice(text, slots, pictures).squeeze(-1)
    assert filled.tolist() == [[-1, 0, 1, -4, 2, 3], [4, 5, -9, -10, -11, -12]]


def test_gradients_flow_to_text_and_pictures() -> None:
    text, pictures = torch.randn(1, 4, 3, requires_grad=True), torch.randn(1, 2, 3, requires_grad=True)
    slots = torch.tensor([[False, True, True, False]])
    weights = torch.arange(12.0).view(1, 4, 3) + 1
    (splice(text, slots, pictures) * weights).sum().backward()
    assert torch.equal(pictures.grad, weights[:, 1:3])
    assert torch.equal(text.grad, weights * ~slots.unsqueeze(-1))


def test_matching_counts_pass() -> None:
    check_slots(batch([[1, 1, 0, 0], [1, 1, 1, 1]], [1, 2]), n_images=3, tokens_per_image=2)
    check_slots(batch([[0, 0], [0, 0]], [0, 0]), n_images=0, tokens_per_image=2)


def test_a_row_that_disagrees_is_named() -> None:
    # Three pictures and six slots in all: only the row-wise count can tell that they are in the wrong rows.
    wrong = batch([[1, 1, 1, 1], [1, 1, 0, 0]], [1, 2])
    with pytest.raises(DataError, match=r"'cat.jpg' has 4 image slots, but its 1 picture\(s\) of 2 tokens each need 2"):
        check_slots(wrong, n_images=3, tokens_per_image=2)
    with pytest.raises(DataError, match="Record in row 0 of the batch has 4 image slots"):
        check_slots(replace(wrong, ids=()), n_images=3, tokens_per_image=2)


def test_missing_pictures_are_noticed() -> None:
    good = batch([[1, 1, 0, 0], [1, 1, 1, 1]], [1, 2])
    with pytest.raises(DataError, match=r"cat\.jpg, dog\.jpg should bring 3 pictures but brings 2"):
        check_slots(good, n_images=2, tokens_per_image=2)
