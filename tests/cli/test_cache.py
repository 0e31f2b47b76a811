"""``sightbridge cache``: training with it is training without it, and it is never used for anything else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_workplace import Workplace, run_command

from sightbridge.data.feature_shards import open_shard, read_entries, read_rows, write_shard

CLOSE = 1e-5
"""Relative; a picture in a batch of another size comes out of the tower with other last bits."""
LEARN = ["optim.lr=0.05", "optim.warmup_steps=0"]
QFORMER = [
    "model.connector={kind: qformer, num_queries: 3, hidden_size: 16, num_layers: 2, num_heads: 2, "
    "intermediate_size: 32, dropout: 0.1}",
    "model.vision_tower.class_token=keep",
    "training.parts.connector={train: full, only: [output]}",
]


def losses(run: Path) -> list[float]:
    """Losses and gradient norms; these depend on the features more than the losses of a random model do."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("loss", "grad_norm", "validation_loss") if name in line]


def train(workplace: Workplace, out: Path, *options: str) -> list[float]:
    assert run_command("train", "tiny/random", *workplace.overrides, *LEARN, *options, "--out", out) == 0
    return losses(out)


def shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.safetensors"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize(("options", "shape"), [([], [4, 32]), (QFORMER, [3, 16])], ids=["tower", "connector.read"])
def test_training_with_a_cache_is_training_without(
    options: list[str], shape: list[int], workplace: Workplace, tmp_path: Path, cache: Path
) -> None:
    stored = [*options, f"data.cache={cache}", "data.cache_dtype=float32"]
    assert run_command("cache", "tiny/random", *workplace.overrides, *stored, "--batch-size", 3) == 0
    assert sum(len(read_entries(open_shard(path))) for path in shards(cache)) == 8 + 4
    assert open_shard(shards(cache)[0]).get_slice("values").get_shape()[1:] == shape
    without = train(workplace, tmp_path / "without", *options)
    assert train(workplace, tmp_path / "with", *stored) == pytest.approx(without, rel=CLOSE)
    assert train(workplace, tmp_path / "workers", *stored, "data.workers=2") == losses(tmp_path / "with")
    memory = train(workplace, tmp_path / "memory", *options, "data.cache=memory", "data.cache_dtype=float32")
    assert memory == pytest.approx(without, rel=CLOSE)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-3), ("float16", 5e-4), ("fp8", 2e-2)])
def test_rounded_features_move_the_loss_a_little(
    dtype: str, tolerance: float, workplace: Workplace, tmp_path: Path, cache: Path
) -> None:
    stored = [f"data.cache={cache}", f"data.cache_dtype={dtype}"]
    assert run_command("cache", "tiny/random", *workplace.overrides, *stored) == 0
    found = train(workplace, tmp_path / "run", *stored, "optim.lr=1e-3")
    without = train(workplace, tmp_path / "without", "optim.lr=1e-3")
    differences = [abs(a - b) / b for a, b in zip(found, without, strict=True)]
    print(f"{dtype}: largest relative difference of a loss or gradient norm {max(differences):.2e}")
    assert max(differences) <= tolerance


def test_stored_views_are_those_of_the_first_epochs(workplace: Workplace, tmp_path: Path, cache: Path) -> None:
    augmented = ["model.image.augment=crop_flip", "training.steps=4", "training.batch_size=4"]  # 8 records: 2 epochs
    stored = [*augmented, f"data.cache={cache}", "data.cache_dtype=float32", "data.cache_views=2"]
    assert run_command("cache", "tiny/random", *workplace.overrides, *stored) == 0
    entries = [entry for path in shards(cache) for entry in read_entries(open_shard(path))]
    assert len([entry for entry in entries if "/" in entry]) == 16 and len(entries) == 20
    with_cache, without = (train(workplace, tmp_path / str(len(o)), *o) for o in (stored, augmented))
    assert with_cache == pytest.approx(without, rel=CLOSE)
    fixed = train(workplace, tmp_path / "fixed", *augmented[1:])
    assert fixed != pytest.approx(without, rel=100 * CLOSE)
    fewer = [*stored[:-1], "data.cache_views=1"]
    assert train(workplace, tmp_path / "fewer", *fewer)[:4] == with_cache[:4]


def test_pictures_opened_the_fast_way_have_features_of_their_own(
    workplace: Workplace, tmp_path: Path, cache: Path
) -> None:
    stored = ["data.decode=fast", f"data.cache={cache}", "data.cache_dtype=float32"]
    assert run_command("cache", "tiny/random", *workplace.overrides, *stored) == 0
    entries = [entry for path in shards(cache) for entry in read_entries(open_shard(path))]
    assert sorted(entry.partition("/")[2] for entry in entries) == [""] * 4 + ["fast"] * 8
    without = train(workplace, tmp_path / "without", stored[0])
    assert train(workplace, tmp_path / "with", *stored) == pytest.approx(without, rel=CLOSE)
    assert train(workplace, tmp_path / "exact") != pytest.approx(without, rel=CLOSE)


def test_a_resumed_run_goes_on_with_its_cache(workplace: Workplace, tmp_path: Path, cache: Path) -> None:
    pretrained = tmp_path / "pretrained"
    train(workplace, pretrained, *QFORMER[:2])
    stored = [*QFORMER, f"training.init_from={pretrained / 'model'}", f"data.cache={cache}", "training.save_every=1"]
    assert run_command("cache", "tiny/random", *workplace.overrides, *stored) == 0
    straight = train(workplace, tmp_path / "straight", *stored)
    interrupted = [*workplace.overrides, *LEARN, *stored]
    out = tmp_path / "interrupted"
    shutil.copytree(tmp_path / "straight", out)
    for path in (out / "checkpoints").iterdir():
        if path.name != "step-00000001":
            shutil.rmtree(path)
    assert run_command("train", "tiny/random", *interrupted, "--out", out, "--resume") == 0
    assert losses(out) == straight


def test_a_run_stops_before_its_first_step_if_anything_differs(
    workplace: Workplace, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = [f"data.cache={cache}", "data.cache_dtype=float32"]
    fewer = [*workplace.overrides, *stored, "data.train.0.limit=5"]
    assert run_command("cache", "tiny/random", *fewer) == 0

    def refusal(*options: str) -> str:
        out = tmp_path / "refused"
        assert run_command("train", "tiny/random", *workplace.overrides, *stored, *options, "--out", out) == 1
        assert not (out / "log.jsonl").exists()
        shutil.rmtree(out, ignore_errors=True)
        return capsys.readouterr().err

    assert "features of 3 pictures are missing, such as" in refusal()
    assert "dtype is float32, not fp8" in refusal("data.cache_dtype=fp8", "data.train.0.limit=5")
    assert "image.fit is squash, not crop" in refusal("model.image.fit=crop", "data.train.0.limit=5")
    assert "weights of the vision tower are others" in refusal("training.seed=7", "data.train.0.limit=5")
    (path,) = shards(cache)
    values, _ = read_rows(open_shard(path), range(len(read_entries(open_shard(path)))))
    write_shard(path.parent, read_entries(open_shard(path)), values.flip(-1), None)
    assert "not what the model computes now (relative error 1" in refusal("data.train.0.limit=5")


def test_what_cannot_be_stored_is_refused(
    workplace: Workplace, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["cache", "tiny/random", *workplace.overrides, f"data.cache={cache}"]
    for option, text in {
        "training.parts.vision_tower.train=full": "nothing in front of the first trained weight is frozen",
        "model.image.augment=crop": "image.augment is 'crop'",
    }.items():
        assert run_command(*command, option) == 1
        assert text in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 500))  # type: ignore[attr-defined]
    assert run_command(*command) == 1
    assert "12 pictures take 0.0 GB, but only 0.0 GB are free" in capsys.readouterr().err
    assert run_command("cache", "tiny/parent-vision") == 1
    assert "nothing to store" in capsys.readouterr().err
    assert not shards(cache)
    monkeypatch.undo()
    assert run_command(*command, f"data.cache={workplace.picture}") == 1
    message = f"error: {workplace.picture}: cannot be made or written (Not a directory). Choose another cache.\n"
    assert capsys.readouterr().err.endswith(message)


def test_dry_run_info_verify_and_gc(
    workplace: Workplace, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = tmp_path / "scenes"
    shutil.copytree(workplace.scenes, scenes)
    overrides = [*workplace.overrides, f"data.root={scenes}", f"data.cache={cache}"]
    assert run_command("cache", "tiny/random", *overrides, "--dry-run") == 0
    assert "12: 3.1 KB" in capsys.readouterr().out and not shards(cache)
    for dtype in ("bfloat16", "float32"):
        assert run_command("cache", "build", "tiny/random", *overrides, f"data.cache_dtype={dtype}") == 0
    capsys.readouterr()
    assert run_command("cache", "info", cache) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {row[row.index("squash") + 1] for row in rows if "squash" in row} == {"bfloat16", "float32"}

    assert run_command("cache", "verify", cache) == 0
    content = bytearray(shards(cache)[0].read_bytes())
    content[-1] ^= 1
    shards(cache)[0].write_bytes(content)
    assert run_command("cache", "verify", cache) == 1
    assert f"damaged: {shards(cache)[0]}" in capsys.readouterr().out
    assert run_command("cache", "verify", cache, "--delete") == 0
    assert len(shards(cache)) == 1

    (scenes / "images" / "train" / "00000.png").unlink()
    for options, count in ((), 12), (("--delete",), 11):
        assert run_command("cache", "gc", cache, *options) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("1 entries, ")
        assert sum(len(read_entries(open_shard(path))) for path in shards(cache)) == count
    assert run_command("cache", "verify", cache) == 0


def test_gc_keeps_what_recipes_use(
    workplace: Workplace, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = [f"data.cache={cache}", "data.cache_dtype=float32", "data.train.0.limit=5"]
    train_options = [*workplace.overrides, *stored]
    for option in ("data.train.0.limit=8", "data.cache_dtype=bfloat16"):
        assert run_command("cache", "tiny/random", *train_options, option) == 0
    before = train(workplace, tmp_path / "run", *stored)
    settings = tmp_path / "run" / "settings.yaml"
    assert run_command("cache", "gc", cache, "--recipe", settings, "--delete") == 0
    (path,) = shards(cache)
    assert len(read_entries(open_shard(path))) == 9 and open_shard(path).get_tensor("values").dtype == torch.float32
    assert train(workplace, tmp_path / "again", *stored) == before
    for verb in ("gc", "info", "verify"):
        assert run_command("cache", verb, tmp_path / "nowhere") == 1
        assert "no such feature cache" in capsys.readouterr().err
        assert run_command("cache", verb, workplace.scenes) == 1
        assert f"{workplace.scenes}: is no feature cache" in capsys.readouterr().err


def test_broken_pictures_are_reported_and_stay_bad_samples(
    workplace: Workplace, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = workplace.scenes / "broken.png"
    broken.write_bytes(workplace.picture.read_bytes()[:200])
    rows = json.loads((workplace.scenes / "train.json").read_text())
    rows[1] = rows[1] | {"image": "broken.png"}
    name = workplace.write_rows("one_broken.json", rows)
    options = [f"data.train.0.path={name}", "data.bad_limit=0.2"]
    stored = [*options, f"data.cache={cache}", "data.cache_dtype=float32"]
    assert run_command("cache", "tiny/random", *workplace.overrides, *stored) == 0
    assert "cannot be used: " in capsys.readouterr().out
    assert train(workplace, tmp_path / "with", *stored) == pytest.approx(train(workplace, tmp_path / "out", *options))
    lists = [(tmp_path / run / "bad_samples.jsonl").read_text() for run in ("with", "out")]
    assert lists[0] == lists[1] and "broken.png" in lists[0]


@pytest.mark.slow
def test_two_processes_fill_one_cache(workplace: Workplace, tmp_path: Path, cache: Path) -> None:
    stored = [f"data.cache={cache}", "data.cache_dtype=float32"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "sightbridge", "cache"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = ["tiny/random", *workplace.overrides, *stored]
    subprocess.run([*command, *options], check=True, env=environment, timeout=600)
    assert sorted(len(read_entries(open_shard(path))) for path in shards(cache)) == [6, 6]
    assert train(workplace, tmp_path / "run", *stored) == pytest.approx(
        train(workplace, tmp_path / "without"), rel=CLOSE
    )
