"""One optimiser step is the same however its records are dealt out, and is not taken if something is not finite."""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from training_models import OPTIM, make_batch, parts, tiny_model

from sightbridge.batch import Batch
from sightbridge.errors import SightbridgeError
from sightbridge.models.losses import Loss
from sightbridge.training.loop import MOST_OVERFLOWS, _count_overflows, make_accelerator
from sightbridge.training.optim import build_optimizer
from sightbridge.training.state import Progress
from sightbridge.training.step import StepResult, training_step

SPLITS = {
    "1 x 8": [range(8)],
    "8 x 1": [[row] for row in range(8)],
    "4 x 2": [(0, 1), (2, 3), (4, 5), (6, 7)],
    "uneven": [(7, 3, 1), (2,), (5, 0, 6, 4)],
}


def steps(row_lists, language_model, precision="fp32", clip_norm=1.0):
    """Two optimiser steps over the same rows; the model and what the steps measured."""
    trained = ("connector", "language_model")
    model = tiny_model(*trained, language_model=language_model)
    accelerator = make_accelerator(precision)
    # eps: a gradient that is zero but for rounding would otherwise move a weight by a whole learning rate
    optimizer = build_optimizer(model, parts(*trained), OPTIM.model_copy(update={"lr": 1e-3, "eps": 1e-4}))
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    batches = [make_batch(rows, language_model == "t5") for rows in row_lists]
    results = [training_step(accelerator, model, optimizer, batches, clip_norm) for _ in range(2)]
    return model, results


@pytest.mark.parametrize("language_model", ["llama", "t5"])
def test_a_step_does_not_depend_on_how_records_are_dealt_out(language_model):
    whole, whole_results = steps(SPLITS["1 x 8"], language_model)
    assert whole_results[0].counts == {"lm": 49} and whole_results[0].samples == 8
    start = tiny_model(language_model=language_model).state_dict()
    assert max((value - start[key]).abs().max() for key, value in whole.state_dict().items()) > 5e-4
    for name, split in SPLITS.items():
        model, results = steps(split, language_model)
        differences = {
            key: (value - whole.state_dict()[key]).abs().max().item() for key, value in model.state_dict().items()
        }
        assert max(differences.values()) < 1e-6, (name, max(differences, key=differences.__getitem__))
        for ours, theirs in zip(results, whole_results, strict=True):
            assert ours.loss == pytest.approx(theirs.loss, abs=1e-6)
            assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
            assert (ours.counts, ours.samples) == (theirs.counts, theirs.samples)


def test_the_loss_is_the_mean_over_target_tokens():
    model = tiny_model()
    rows = [0, 1, 3]
    losses = [model(make_batch([row]))["lm"] for row in rows]
    expected = sum(loss.sum.item() for loss in losses) / sum(loss.count for loss in losses)
    accelerator = make_accelerator("fp32")
    result = training_step(
        accelerator, model, build_optimizer(model, parts(), OPTIM), [make_batch([row]) for row in rows], None
    )
    assert result.loss == pytest.approx(expected, abs=1e-6)
    assert result.counts == {"lm": 1 + 9 + 14}


class Line(nn.Module):
    """Loss: the sum over rows of (weight - pixel of the row) squared, or its root, whose gradient is infinite at 0."""

    def __init__(self, root=False):
        super().__init__()
        self.vision_tower, self.language_model = nn.Identity(), nn.Identity()
        self.connector = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.connector.weight, 2.0)
        self.root = root

    def forward(self, batch):
        squares = (self.connector.weight.flatten() - batch.pixel_values[:, 0, 0, 0]) ** 2
        return {"lm": Loss((squares.sqrt() if self.root else squares).sum(), batch.n_target_tokens)}


def line_batch(name, value):
    return replace(make_batch([0]), pixel_values=torch.full((1, 3, 2, 2), value), ids=(name,))


def line_step(values, root=False, clip_norm=None):
    model = Line(root)
    optimizer = torch.optim.SGD(model.connector.parameters(), lr=0.1)
    batches = [line_batch(f"record-{value}", value) for value in values]
    try:
        return model.connector.weight, training_step(make_accelerator("fp32"), model, optimizer, batches, clip_norm)
    except SightbridgeError as error:
        return model.connector.weight, error


def test_gradient_norm_is_measured_before_clipping():
    # one target a batch, weight 2: loss ((2-0)^2 + (2-1)^2) / 2, gradient (2*2 + 2*1) / 2 = 3
    weight, result = line_step([0.0, 1.0])
    assert result.loss == pytest.approx(2.5) and result.grad_norm == pytest.approx(3.0)
    assert weight.item() == pytest.approx(2 - 0.1 * 3)
    weight, result = line_step([0.0, 1.0], clip_norm=0.5)
    assert result.grad_norm == pytest.approx(3.0)
    assert weight.item() == pytest.approx(2 - 0.1 * 0.5, abs=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_records():
    weight, error = line_step([0.0, float("nan"), 1.0])
    assert isinstance(error, SightbridgeError)
    assert "the loss (nan)" in str(error) and "step was not taken" in str(error)
    assert "Records: record-nan. " in str(error)
    assert weight.item() == 2.0


def test_a_gradient_that_is_not_finite_stops_too():
    weight, error = line_step([0.0, 2.0], root=True)
    assert isinstance(error, SightbridgeError)
    assert "the loss (1.0)" in str(error) and "Records: record-0.0, record-2.0. " in str(error)
    assert weight.item() == 2.0


def test_a_model_that_counts_other_targets_is_noticed():
    batch = replace(make_batch([1]), n_target_tokens=8)
    model = tiny_model()
    with pytest.raises(AssertionError, match="count targets differently"):
        training_step(make_accelerator("fp32"), model, build_optimizer(model, parts(), OPTIM), [batch], None)


def test_bf16_is_autocast_around_the_forward_pass():
    _, exact_results = steps(SPLITS["4 x 2"], "llama")
    model, results = steps(SPLITS["4 x 2"], "llama", precision="bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert results[0].loss != exact_results[0].loss
    assert results[0].loss == pytest.approx(exact_results[0].loss, rel=0.02)
    assert results[1].loss == pytest.approx(exact_results[1].loss, rel=0.05)


class TwoLosses(Line):
    """Beside the squares, the sum of ``twice`` the weight over every other count."""

    def forward(self, batch):
        (row,) = batch.ids
        return super().forward(batch) | {"other": Loss(2 * self.connector.weight.sum() * OTHER[row], OTHER[row])}


OTHER = {"record-0.0": 3, "record-1.0": 0}


@dataclass(frozen=True)
class TwoCounts(Batch):
    @property
    def loss_counts(self):
        return super().loss_counts | {"other": OTHER[self.ids[0]]}


def test_each_loss_is_divided_by_its_own_count():
    # squares: mean of 4 and 1, gradient 3; other: 3 x 2 x weight / 3, gradient 2
    model = TwoLosses()
    optimizer = torch.optim.SGD(model.connector.parameters(), lr=0.1)
    batches = [TwoCounts(**vars(line_batch(f"record-{value}", value))) for value in (0.0, 1.0)]
    result = training_step(make_accelerator("fp32"), model, optimizer, batches, None)
    assert result.losses == pytest.approx({"lm": 2.5, "other": 4.0}) and result.counts == {"lm": 2, "other": 3}
    assert result.loss == pytest.approx(6.5) and result.grad_norm == pytest.approx(5.0)
    assert model.connector.weight.item() == pytest.approx(2 - 0.1 * 5)


@pytest.fixture
def scaling():
    """What accelerate makes for fp16, on the CPU, where ``make_accelerator`` refuses it."""
    accelerator = make_accelerator("fp32")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    yield accelerator
    make_accelerator("fp32")


def scaled_steps(accelerator, values, steps=1):
    """Steps of the squares model in fp16; the weight, the losses scaled by 2^16 overflow above 1."""
    model = Line()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.connector.parameters(), lr=0.1))
    accelerator.autocast = nullcontext  # the model squares in float32: only the scale is looked at
    batches = [line_batch(f"record-{value}", value) for value in values]
    results = [training_step(accelerator, model, optimizer, batches, 1.0) for _ in range(steps)]
    return accelerator.unwrap_model(model).connector.weight.item(), results


def test_fp16_scales_the_loss_and_nothing_else_changes(scaling):
    weight, (result,) = scaled_steps(scaling, [0.0, 1.0])
    assert result.loss == pytest.approx(2.5) and result.grad_norm == pytest.approx(3.0) and not result.skipped
    assert weight == pytest.approx(2 - 0.1 * 1.0), "clipped after the scale was taken out"


def test_an_overflow_in_fp16_skips_the_step_and_halves_the_scale(scaling):
    weight, results = scaled_steps(scaling, [0.0, -1e36], steps=3)  # its gradient is finite, and 2^16 times it is not
    assert [result.skipped for result in results] == [True] * 3
    assert weight == 2.0 and scaling.scaler.get_scale() == 2.0**13


def test_a_loss_that_is_not_finite_stops_fp16_in_the_end():
    progress, skipped = Progress(), StepResult({"lm": float("nan")}, float("inf"), {"lm": 1}, 1, skipped=True)
    for _ in range(MOST_OVERFLOWS - 1):
        _count_overflows(progress, skipped)
    _count_overflows(progress, skipped._replace(skipped=False))
    assert progress.overflows == 0, "only those in a row count"
    with pytest.raises(SightbridgeError, match=r"20 steps in a row.*training\.precision=bf16"):
        for _ in range(MOST_OVERFLOWS):
            _count_overflows(progress, skipped)
