"""What is measured between two log lines, by a clock that the test turns."""

import json
from types import SimpleNamespace

import pytest

from sightbridge.training.log import Meter, peak_memory_gb
from sightbridge.training.step import StepResult


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("sightbridge.training.log.time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def test_rates_and_means(clock):
    meter = Meter()
    meter.add(StepResult({"lm": 2.0}, 5.0, {"lm": 10}, samples=4), waited=0.5)
    meter.add(StepResult({"lm": 1.0}, 3.0, {"lm": 30}, samples=4), waited=1.5)
    clock.seconds += 4.0
    summary = meter.summary()
    assert summary["loss"] == pytest.approx((2.0 * 10 + 1.0 * 30) / 40)
    assert summary["grad_norm"] == 3.0
    assert summary["samples_per_second"] == pytest.approx(2.0)
    assert summary["target_tokens_per_second"] == pytest.approx(10.0)
    assert summary["data_wait"] == pytest.approx(0.5)


def test_several_losses_have_means_of_their_own_and_are_added_up(clock):
    meter = Meter()
    meter.add(StepResult({"itc": 2.0, "itg": 3.0}, 1.0, {"itc": 10, "itg": 10}, samples=10), waited=0.0)
    meter.add(StepResult({"itc": 1.0, "itg": 0.0}, 1.0, {"itc": 10, "itg": 30}, samples=10), waited=0.0)
    clock.seconds += 2.0
    summary = meter.summary()
    assert (summary["loss/itc"], summary["loss/itg"], summary["loss"]) == pytest.approx((1.5, 0.75, 2.25))
    assert summary["target_tokens_per_second"] == pytest.approx(30.0)


def test_skipped_steps_are_counted_and_their_losses_are_not(clock):
    meter = Meter()
    meter.add(StepResult({"lm": 2.0}, 1.0, {"lm": 10}, 4), waited=0.0)
    meter.add(StepResult({"lm": float("nan")}, float("inf"), {"lm": 10}, 4, skipped=True), waited=0.0)
    clock.seconds += 2.0
    summary = meter.summary()
    assert (summary["loss"], summary["grad_norm"], summary["skipped_steps"]) == (2.0, 1.0, 1)
    assert summary["samples_per_second"] == pytest.approx(4.0)


def test_a_meter_goes_on_where_another_stopped(clock):
    meter, other = Meter(), Meter()
    meter.add(StepResult({"lm": 2.0}, 5.0, {"lm": 10}, 4), waited=1.0)
    clock.seconds += 4.0
    other.load_state_dict(json.loads(json.dumps(meter.state_dict())))
    assert other.summary() == meter.summary()


def test_time_spent_on_other_things_does_not_count(clock):
    meter = Meter()
    meter.add(StepResult({"lm": 1.0}, 1.0, {"lm": 10}, 8), waited=1.0)
    clock.seconds += 2.0
    with meter.paused():
        clock.seconds += 60.0
    assert meter.summary()["samples_per_second"] == pytest.approx(4.0)
    assert meter.summary()["data_wait"] == pytest.approx(0.5)


def test_a_new_interval_starts_from_nothing(clock):
    meter = Meter()
    meter.add(StepResult({"lm": 9.0}, 1.0, {"lm": 10}, 8), waited=1.0)
    clock.seconds += 5.0
    meter.reset()
    meter.add(StepResult({"lm": 1.0}, 2.0, {"lm": 5}, 2), waited=0.0)
    clock.seconds += 1.0
    summary = meter.summary()
    assert (summary["loss"], summary["samples_per_second"], summary["data_wait"]) == (1.0, 2.0, 0.0)


def test_memory_is_in_gigabytes():
    assert 0.02 < peak_memory_gb() < 1000
