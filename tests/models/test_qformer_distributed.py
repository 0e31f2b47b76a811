"""Two processes reach the losses of one that has all their rows: negatives come from everywhere."""

import pytest
import torch
from builders import widest_difference
from qformer_two_processes import CASES, ROWS, run, run_share

from processes import start_two


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    start_two({}, run_share, folder)
    return [torch.load(folder / f"process-{rank}.pt", weights_only=True) for rank in "01"]


@pytest.fixture(scope="module")
def alone():
    return run(sorted(ROWS[0] + ROWS[1]))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_losses_of_one(name, two, alone):
    for one in two:
        assert one[name]["losses"] == pytest.approx(alone[name]["losses"], abs=1e-5)


def test_gradients_are_those_of_one_process_where_asked_for(two, alone):
    """By default, as in LAVIS, the contrastive loss sends none to gathered vectors; with gather_gradients it does."""
    gaps = {}
    for name in ("plain", "every gradient"):
        expected, reached = alone[name]["gradients"], two[0][name]["gradients"]
        assert expected.keys() == reached.keys()
        gaps[name] = max(widest_difference(reached[key], gradient) for key, gradient in expected.items())
    print(f"gradients of two processes and one: {gaps}")
    assert gaps["every gradient"] < 2e-5
    assert gaps["plain"] > 1e-3
