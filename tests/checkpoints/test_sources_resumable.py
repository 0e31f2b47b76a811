"""A conversion that is killed goes on where it was, and what was there before it stays until it is done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sightbridge.checkpoints.atomic import identity_of, resumable_folder
from sightbridge.checkpoints.sources.weights import Weights, open_weights
from sightbridge.checkpoints.sources.writer import write_sharded
from sightbridge.errors import CheckpointError

JOB = """
import os, sys, signal
from pathlib import Path
import torch
from sightbridge.checkpoints.atomic import resumable_folder
from sightbridge.checkpoints.sources.weights import Weights
from sightbridge.checkpoints.sources.writer import write_sharded

weights = Weights.of({f"w{i}": torch.full((100,), float(i)) for i in range(6)})

def killed_at_w4(name):
    if name == "w4":
        os.kill(os.getpid(), signal.SIGKILL)

with resumable_folder(Path(sys.argv[1]), {"settings": 1}) as work:
    write_sharded(work.folder, weights, max_shard_bytes=800, on_tensor=killed_at_w4, journal=work)
"""


def convert(target: Path, job: dict[str, object]) -> tuple[int, list[str]]:
    """Write six tensors in three shards; returns how many files were there already, and which tensors were written."""
    written: list[str] = []
    weights = Weights.of({f"w{i}": torch.full((100,), float(i)) for i in range(6)})
    with resumable_folder(target, job) as work:
        resumed = work.resumed
        write_sharded(work.folder, weights, max_shard_bytes=800, on_tensor=written.append, journal=work)
    return resumed, written


def kill_in_the_middle(target: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", JOB, str(target)], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL


def stop_in_the_middle(target: Path) -> None:
    def stopped_at_w4(name: str) -> None:
        if name == "w4":
            raise KeyboardInterrupt

    weights = Weights.of({f"w{i}": torch.full((100,), float(i)) for i in range(6)})
    with pytest.raises(KeyboardInterrupt), resumable_folder(target, {"settings": 1}) as work:
        write_sharded(work.folder, weights, max_shard_bytes=800, on_tensor=stopped_at_w4, journal=work)


def test_a_killed_job_is_resumed(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("as it was")
    kill_in_the_middle(target)
    assert [path.name for path in target.iterdir()] == ["old"]
    assert convert(target, {"settings": 1}) == (2, ["w4", "w5"])
    weights = open_weights(target)
    assert all(torch.equal(weights.read(f"w{i}"), torch.full((100,), float(i))) for i in range(6))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in target.iterdir()) == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]


def test_what_another_job_left_is_thrown_away(tmp_path: Path) -> None:
    stop_in_the_middle(tmp_path / "out")
    assert convert(tmp_path / "out", {"settings": 2}) == (0, [f"w{i}" for i in range(6)])


def test_a_file_that_changed_since_is_written_again(tmp_path: Path) -> None:
    stop_in_the_middle(tmp_path / "out")
    first = tmp_path / ".out.resumable" / "model-00001-of-00003.safetensors"
    os.truncate(first, 100)
    assert convert(tmp_path / "out", {"settings": 1})[1] == ["w0", "w1", "w4", "w5"]


def test_a_journal_cut_off_in_a_line_is_read_up_to_it(tmp_path: Path) -> None:
    stop_in_the_middle(tmp_path / "out")
    journal = tmp_path / ".out.resumable" / ".journal.jsonl"
    os.truncate(journal, journal.stat().st_size - 5)
    assert convert(tmp_path / "out", {"settings": 1}) == (1, ["w2", "w3", "w4", "w5"])


def test_an_error_keeps_what_is_finished(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), resumable_folder(tmp_path / "out", {}) as work:
        (work.folder / "part").write_text("done")
        work.finish(work.folder / "part")
        raise RuntimeError
    assert not (tmp_path / "out").exists()
    with resumable_folder(tmp_path / "out", {}) as work:
        assert work.has(work.folder / "part")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part"]


def test_two_cannot_write_the_same_folder(tmp_path: Path) -> None:
    with resumable_folder(tmp_path / "out", {}) as work:
        with pytest.raises(CheckpointError, match="another process is writing"), resumable_folder(tmp_path / "out", {}):
            pass
        (work.folder / "part").write_text("done")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part"]


def test_identity_tells_a_changed_source(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = identity_of(tmp_path)
    assert before == identity_of(tmp_path)
    (tmp_path / "a").write_text("12")
    assert identity_of(tmp_path) != before
    assert identity_of(tmp_path / "a") == identity_of(tmp_path)
