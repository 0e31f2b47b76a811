"""Two processes reach the losses of one that has all their rows: negatives come from everywhere."""

import os
import socket
import subprocess
import sys

import pytest
import qformer_two_processes
import torch
from builders import widest_difference
from qformer_two_processes import CASES, ROWS, run


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, qformer_two_processes.__file__, str(folder)]
    started = [
        subprocess.Popen(
            command, env=environment | {"RANK": rank, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    for started_process in started:
        _, errors = started_process.communicate(timeout=120)
        assert started_process.returncode == 0, errors
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
