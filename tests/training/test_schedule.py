"""The learning rate of every step: hand-computed values, and the curves of transformers."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from sightbridge.config.training import OptimSettings
from sightbridge.training.schedule import learning_rate, warmup_length


def rates(total: int, peak: float | None = None, **optim) -> list[float]:
    return [learning_rate(step, total, OptimSettings(**optim), peak) for step in range(total)]


def test_cosine_by_hand():
    # warm-up 1e-4 -> 1e-3 in 3 steps, then half a cosine down to 2e-4 over the remaining 4: cos 0, 45, 90, 135 degrees
    got = rates(7, lr=1e-3, min_lr=2e-4, warmup_lr=1e-4, warmup_steps=3)
    down = [2e-4 + 4e-4 * (1 + math.cos(math.radians(degrees))) for degrees in (0, 45, 90, 135)]
    assert got == pytest.approx([1e-4, 4e-4, 7e-4, *down])
    assert down[0] == 1e-3 and down[2] == pytest.approx(6e-4)


def test_linear_and_constant_by_hand():
    assert rates(6, lr=1.0, min_lr=0.2, warmup_steps=2, schedule="linear") == pytest.approx([0, 0.5, 1, 0.8, 0.6, 0.4])
    assert rates(4, lr=1.0, min_lr=0.2, warmup_steps=1, schedule="constant") == [0.0, 1.0, 1.0, 1.0]


def test_without_warmup_the_first_step_is_at_the_peak():
    assert rates(4, lr=1.0)[0] == 1.0


def test_after_the_end_the_rate_stays_at_the_floor():
    optim = OptimSettings(lr=1.0, min_lr=0.1, schedule="linear")
    assert [learning_rate(step, 10, optim) for step in (10, 11, 50)] == pytest.approx([0.1] * 3)


def test_warmup_as_a_share_of_all_steps_rounds_up():
    assert warmup_length(OptimSettings(warmup_ratio=0.03), 101) == 4
    assert warmup_length(OptimSettings(warmup_ratio=0.03), 100) == 3
    assert warmup_length(OptimSettings(warmup_steps=7), 100) == 7
    assert warmup_length(OptimSettings(), 100) == 0


def test_a_part_has_its_own_peak_and_is_never_raised_to_the_floor():
    assert max(rates(10, peak=0.5, lr=1.0, warmup_steps=2)) == 0.5
    assert rates(10, peak=1e-3, lr=1.0, min_lr=0.1) == pytest.approx([1e-3] * 10)


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)],
)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_parity_with_transformers(schedule, reference, warmup):
    total, lr = 40, 3e-3
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = reference(optimizer, warmup, total)
    theirs = []
    for _ in range(total):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = rates(total, lr=lr, warmup_steps=warmup, schedule=schedule)
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"parity {schedule} schedule, warm-up {warmup}: {difference:.2e}")
    assert difference < 1e-12


def test_parity_with_lavis_epochs():
    golden = json.loads((Path(__file__).parents[1] / "golden" / "lavis" / "lr_stage1.json").read_text())
    optim = OptimSettings(lr=1e-4, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=5000, schedule="lavis_epoch_cosine")
    difference = max(
        abs(learning_rate(epoch * 10_000 + step, 100_000, optim, steps_per_epoch=10_000) - rate)
        for epoch, step, rate, _ in golden
    )
    print(f"parity LAVIS' epochs: {difference:.1e}")
    assert difference < 1e-19


def test_lavis_warmup_ends_with_the_first_epoch():
    optim = OptimSettings(lr=1.0, warmup_steps=100, schedule="lavis_epoch_cosine")
    got = [learning_rate(step, 8, optim, steps_per_epoch=2.5) for step in range(8)]  # epochs begin at 0, 2.5, 5, 7.5
    cosines = [0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert got == pytest.approx([0.0, 0.01, 0.02, cosines[1], cosines[1], cosines[2], cosines[2], cosines[2]])


def test_parity_with_minigpt4qwen_alignment():
    """LAVIS' schedule by iterations, 16 of them a step: the rates of every epoch as the reference's log shows them."""
    optim = OptimSettings(lr=1e-4, min_lr=1e-6, warmup_steps=500, warmup_unit="batch", schedule="lavis_epoch_cosine")

    def rate(step: int) -> float:
        return learning_rate(step, 1470, optim, steps_per_epoch=147, accumulation=16)

    for step in range(40):  # the optimiser steps in iteration 16 step + 15
        assert rate(step) == pytest.approx(min(1e-4, 1e-4 * (16 * step + 15) / 500))
    epochs = [1e-4, 9.758e-5, 9.055e-5, 7.960e-5, 6.580e-5, 5.050e-5, 3.520e-5, 2.141e-5, 1.045e-5, 3.423e-6]
    difference = max(abs(rate(147 * (epoch + 1) - 1) - value) for epoch, value in enumerate(epochs))
    print(f"parity MiniGPT4Qwen's epochs, values of four digits: {difference:.1e}")
    assert difference < 6e-9


def test_a_warmup_in_batches_is_one_in_steps_without_accumulation():
    options = {"lr": 1.0, "warmup_steps": 5, "schedule": "cosine"}
    by_step, by_batch = OptimSettings(**options), OptimSettings(**options, warmup_unit="batch")
    assert [learning_rate(s, 20, by_batch) for s in range(20)] == [learning_rate(s, 20, by_step) for s in range(20)]
    assert [learning_rate(s, 20, by_batch, accumulation=2) for s in range(3)] == pytest.approx([0.2, 0.6, 1.0])


def test_parity_with_minigpt4qwens_stepwise_schedule():
    """A cosine over the steps, warm-up a share of them. The reference sets the rate behind a step, so that its first
    one runs at the full rate, without a warm-up; ours begins where the warm-up does."""
    optim = OptimSettings(lr=1e-3, warmup_ratio=0.03)
    total, warmup = 2200, 66
    theirs = [
        1e-3 * step / warmup if step < warmup else 0.5e-3 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        for step in range(total)
    ]
    difference = max(abs(learning_rate(step, total, optim) - rate) for step, rate in enumerate(theirs))
    print(f"parity MiniGPT4Qwen's step-wise schedule behind the first step: {difference:.1e}")
    assert difference < 1e-18
