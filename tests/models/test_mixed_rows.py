"""Training on rows with no picture, one and two, together: loss and gradients are those of the rows one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import QFORMER, make_batch, tiny_model
from torch import Tensor

from sightbridge.models.vlm import VisionLanguageModel

ROWS = [(5, 0, 5), (1, 1, 6), (2, 2, 9), (3, 0, 12), (4, 1, 4), (6, 2, 4)]
"""Seed, pictures and text tokens of each row."""
CONNECTORS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp"},
    "qformer": {"kind": "qformer", **QFORMER, "dropout": 0.0, "initializer_range": 0.3},
}


def learn(model: VisionLanguageModel, rows: list[tuple[int, int, int]], side: str) -> tuple[float, dict[str, Tensor]]:
    """The summed loss of a batch, and the gradients of all that it reaches."""
    model.zero_grad()
    loss = model(make_batch(model, rows, side))["lm"].sum
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("family", ["llama", "bloom", "t5", "mt5"])
def test_a_mixed_batch_teaches_what_its_rows_teach_alone(family: str, connector: str) -> None:
    model = tiny_model(family, connector=CONNECTORS[connector])
    parts = [learn(model, [row], "right") for row in ROWS]
    for side in ("left", "right"):
        loss, gradients = learn(model, ROWS, side)
        assert loss == pytest.approx(sum(part for part, _ in parts), rel=1e-5)
        sums = {name: sum((own[name] for _, own in parts if name in own), torch.zeros(())) for name in gradients}
        largest = max(gradient.abs().max().item() for gradient in sums.values())
        for name, gradient in gradients.items():
            assert (gradient - sums[name]).abs().max().item() < 1e-5 * largest, (side, name)
    assert any(name.startswith("connector") and sums[name].abs().max() > 1e-3 * largest for name in sums)
