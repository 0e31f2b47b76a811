"""Two processes train exactly as one does on the same records."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes
from two_processes import CASES, run_case

SCRIPT = Path(two_processes.__file__)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What both processes ended with, case by case."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(SCRIPT), str(folder)]
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    started = [  # as torchrun starts them
        subprocess.Popen(
            command, env=environment | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    for process in started:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"process-{rank}.pt") for rank in "01"], folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name, two, tmp_path):
    (first, second), _ = two
    two_processes.saved.clear()
    alone = run_case(name, tmp_path, processes=1)
    assert first[name]["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert first[name]["samples"] == pytest.approx(alone["samples"])
    widest = 0.0
    for key, weights in alone["weights"].items():
        assert torch.equal(first[name]["weights"][key], second[name]["weights"][key]), key
        widest = max(widest, (first[name]["weights"][key] - weights).abs().max().item())
    print(f"two processes and one, {name}: widest difference of a weight {widest:.1e}")
    assert widest < 1e-6


def test_only_the_main_process_saves_and_logs(two):
    (first, second), folder = two
    assert first["connector"]["saved"] == [4] and second["connector"]["saved"] == []
    assert len((folder / "connector" / "log.jsonl").read_text().splitlines()) == 4
