"""A real process, killed by the system in the middle of a run, and `train --resume` after it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_workplace import Workplace, run_command

TIMES = {"samples_per_second", "target_tokens_per_second", "data_wait", "memory_gb"}
STEPS = 12


@pytest.fixture(scope="module")
def options(workplace: Workplace) -> list[str]:
    """A run with everything random that there is: dropout, crops and flips, a record to be replaced on the way."""
    rows = json.loads((workplace.scenes / "train.json").read_text())
    (workplace.scenes / "cut_off.png").write_bytes(workplace.picture.read_bytes()[:200])
    rows[3] |= {"image": "cut_off.png"}
    name = workplace.write_rows("one_bad.json", rows)
    changed = ("data.train.0.path=", "training.steps=")
    return [
        *(text for text in workplace.overrides if not text.startswith(changed)),
        f"data.train.0.path={name}",
        "data.bad_limit=0.5",
        "model.image.augment=crop_flip",
        "model.connector={kind: qformer, num_queries: 2, hidden_size: 16, num_layers: 2, num_heads: 2, "
        "intermediate_size: 16, dropout: 0.3}",
        f"training.steps={STEPS}",
        "training.batch_size=1",
        "training.accumulation=2",
        "training.save_every=2",
        "training.evaluate_every=5",
        "training.log_every=3",
        "training.best=validation_loss",
    ]


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
"""What ``accelerate launch`` puts into the environment for it."""


def start(
    options: list[str], run: Path, processes: int = 1, launcher: dict[str, str] | None = None
) -> list[subprocess.Popen[bytes]]:
    """The command in processes of its own, with as many threads as here: the order of sums depends on it."""
    command = [sys.executable, "-m", "sightbridge", "train", "tiny/random", *options, "--out", str(run), "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "ACCELERATE_USE_CPU": "true"}
    environment |= launcher or {}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        environment |= {"WORLD_SIZE": str(processes)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
    return [subprocess.Popen(command, env=environment | rank, stdout=subprocess.DEVNULL) for rank in ranks]


def kill_after_checkpoint(started: list[subprocess.Popen[bytes]], run: Path, step: int) -> None:
    """Wait for a checkpoint, then end the processes as a power cut does."""
    checkpoint = run / "checkpoints" / f"step-{step:08d}"
    until = time.monotonic() + 300
    while not checkpoint.exists() and time.monotonic() < until:
        assert started[0].poll() is None, "it ended by itself"
        time.sleep(0.001)
    for process in started:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def what_is_left(run: Path) -> dict[str, Any]:
    """Everything of a run but times, and what says when and where it was saved."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    left: dict[str, Any] = {"log": [{k: v for k, v in line.items() if k not in TIMES} for line in lines]}
    last = run / "checkpoints" / f"step-{STEPS:08d}"
    names = ["weights.safetensors", "optimizer.pt", "processes.pt"]
    files = [*(last / name for name in names), run / "model" / "connector.safetensors", *run.glob("bad_samples*.jsonl")]
    left |= {str(path.relative_to(run)): path.read_bytes() for path in files}
    left["checkpoints"] = sorted(path.name for path in (run / "checkpoints").iterdir())
    return left


def test_a_killed_run_ends_as_one_that_was_left_alone(
    workplace: Workplace, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_after_checkpoint(start(options, tmp_path / "killed"), tmp_path / "killed", step=2)
    assert len((tmp_path / "killed" / "log.jsonl").read_text().splitlines()) < STEPS // 3 + 3
    train = ["train", "tiny/random", *options]
    assert run_command(*train, "--out", tmp_path / "killed", "--resume") == 0
    assert "resumed after step " in capsys.readouterr().out
    assert run_command(*train, "--out", tmp_path / "straight") == 0
    killed, straight = (what_is_left(tmp_path / name) for name in ("killed", "straight"))
    assert killed.keys() == straight.keys() and "bad_samples.jsonl" in killed
    for name, content in straight.items():
        assert killed[name] == content, name
    capsys.readouterr()
    assert run_command(*train, "--out", tmp_path / "killed", "--resume") == 0
    assert f"has taken all of its {STEPS} steps" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [{}, FSDP2], ids=["ddp", "fsdp2"])
def test_two_killed_processes_too(launcher: dict[str, str], options: list[str], tmp_path: Path) -> None:
    kill_after_checkpoint(start(options, tmp_path / "killed", 2, launcher), tmp_path / "killed", step=4)
    for run in ("killed", "straight"):
        for process in start(options, tmp_path / run, 2, launcher):
            assert process.wait(timeout=600) == 0
    killed, straight = (what_is_left(tmp_path / name) for name in ("killed", "straight"))
    assert killed == straight
    states = torch.load(tmp_path / "killed" / "checkpoints" / f"step-{STEPS:08d}" / "processes.pt", weights_only=True)
    assert not torch.equal(states[0]["random"]["torch"], states[1]["random"]["torch"]), "each draws its own dropout"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume", "--overwrite"], "give one of them"),
        (["--resume", "model.connector.dropout=0.1"], "cannot be resumed with another model.connector"),
        (["--resume", "training.batch_size=2"], "records would be left out or come twice"),
        (["training.best=val_loss"], "measure no 'val_loss', only validation_loss"),
        (["training.global_batch=7", "training.accumulation=1"], "must be a multiple of 4"),
        (["training.precision=fp16"], "fp16 needs a GPU"),
        (["training.init_from=nowhere"], "nowhere"),
        (["training.best=validation_loss", "data.validation=[]"], "no evaluation to measure 'validation_loss'"),
        (["training.parts.connector.only=[layer.0]"], "no submodule 'layer.0' with weights"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], message: str, workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train = ["train", "tiny/random", *workplace.overrides, "--out", run]
    if "--resume" in flags and "--overwrite" not in flags:
        assert run_command(*train, "training.steps=1") == 0
        capsys.readouterr()
    others = [text for text in flags if not text.startswith("data.validation")]
    mine = ["data.validation=[]"] if others != flags else []
    base = [t for t in train if not (mine and str(t).startswith("data.validation"))]
    assert run_command(*base, *mine, *others) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and "Traceback" not in err


def test_a_new_run_starts_from_the_weights_of_another(
    workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "tiny/random", *workplace.overrides, "training.steps=1", f"training.init_from={workplace.model}"]
    assert run_command(*train, "optim.warmup_steps=1", "--out", tmp_path / "run") == 0  # the first rate is 0
    out = capsys.readouterr().out
    assert "taken: connector: 3,936 weights" in out
    for name in ("connector", "vision_tower", "language_model"):
        weights = [model / f"{name}.safetensors" for model in (workplace.model, tmp_path / "run" / "model")]
        assert weights[0].read_bytes() == weights[1].read_bytes(), name
    assert run_command(*train, "model.connector.kind=linear", "--out", tmp_path / "other") == 1
    err = capsys.readouterr().err
    assert "the connector there is not built as the one here" in err and err.count("\n") == 1
