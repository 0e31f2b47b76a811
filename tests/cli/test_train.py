"""``sightbridge train``: what a run leaves behind, and what stops it before anything is built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_workplace import Workplace, run_command
from PIL import Image

import sightbridge
from sightbridge.cli.train import _report_chain
from sightbridge.config.load import load_recipe, read_recipe
from sightbridge.data.readers.llava import read_llava
from sightbridge.training import run as run_module
from sightbridge.training.chain import StepResult
from sightbridge.training.report import write_run_report

ROW = {
    "image": "images/train/00000.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A star."}],
}


def read_log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_settings_environment_log_and_model(workplace: Workplace) -> None:
    run = workplace.run
    expected = {"settings.yaml", "environment.json", "log.jsonl", "model", "checkpoints"}
    expected |= {"report.html", "curves.png", "samples.jsonl"}
    assert {path.name for path in run.iterdir()} == expected
    assert load_recipe(run / "settings.yaml") == load_recipe("tiny/random", workplace.overrides)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["sightbridge"] == sightbridge.__version__
    assert environment["torch"] == torch.__version__
    assert [line["step"] for line in read_log(run) if line["kind"] == "train"] == [1, 2, 3]


@pytest.mark.usefixtures("drawn_curves")
def test_the_curves_of_a_run_are_drawn(workplace: Workplace) -> None:
    write_run_report(workplace.run)
    assert Image.open(workplace.run / "curves.png").width > 1000


def test_only_the_connector_was_trained(workplace: Workplace) -> None:
    trained, _ = sightbridge.load(workplace.model)
    with torch.random.fork_rng():
        fresh = run_module.build_any(load_recipe("tiny/random", workplace.overrides).model, seed=0)
    for name, weight in trained.state_dict().items():
        assert torch.equal(weight, fresh.state_dict()[name]) == (not name.startswith("connector")), name


def test_validation_loss_is_the_mean_over_all_target_tokens(workplace: Workplace) -> None:
    model, processor = sightbridge.load(workplace.model)
    records = list(read_llava(workplace.scenes / "test.json", workplace.scenes))
    with torch.no_grad():
        losses = [model(processor([record]))["lm"] for record in records]
    assert len({count for _, count in losses}) > 1, "the mean over records would be the same"
    expected = float(sum(loss for loss, _ in losses)) / sum(count for _, count in losses)
    (line,) = [line for line in read_log(workplace.run) if line["kind"] == "evaluation"]
    assert line["validation_loss"] == pytest.approx(expected, rel=1e-4)


def test_kept_features_and_a_second_run_change_nothing(
    workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*workplace.overrides, "data.cache=memory", "data.cache_dtype=float32"]
    assert run_command("train", "tiny/random", *options, "--out", tmp_path / "run") == 0
    assert run_command("train", "tiny/random", *workplace.overrides, "--out", tmp_path / "run") == 1
    assert "holds a run already" in capsys.readouterr().err
    weights = [tmp_path / "run" / "model" / "connector.safetensors", workplace.model / "connector.safetensors"]
    losses = [
        [line["loss"] for line in read_log(run) if line["kind"] == "train"] for run in (tmp_path / "run", workplace.run)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    (tmp_path / "run" / "mine.txt").write_text("kept")
    assert run_command("train", "tiny/random", *workplace.overrides, "--out", tmp_path / "run", "--overwrite") == 0
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (tmp_path / "run" / "mine.txt").exists()


def test_extra_evaluation_and_saves_on_the_way(workplace: Workplace, tmp_path: Path) -> None:
    seen = []

    def evaluate(model, processor, records, step) -> dict[str, float]:
        assert len(records) == 0
        seen.append((step, model.training, processor.tokens_per_image))
        return {"extra": step / 2}

    options = ["training.steps=2", "training.evaluate_every=1", "training.save_every=1", "data.validation=[]"]
    loaded = read_recipe("tiny/random", [*workplace.overrides, *options])
    history = run_module.run_recipe(loaded, tmp_path / "run", evaluate=evaluate)
    assert seen == [(1, False, 4), (2, False, 4)]
    assert [line for line in history if line["kind"] == "evaluation"] == [
        {"kind": "evaluation", "step": 1, "extra": 0.5},
        {"kind": "evaluation", "step": 2, "extra": 1.0},
    ]
    manifest = json.loads((tmp_path / "run" / "model" / "sightbridge.json").read_text())
    assert manifest["provenance"] == {"recipe": "tiny/random", "steps": 2, "seed": 0}


def test_answers_are_measured_before_the_first_step_and_after_the_last(workplace: Workplace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["training.evaluate_first=true", "evaluation={metrics: [accuracy, cider], records: 2}"]
    assert run_command("train", "tiny/random", *workplace.overrides, *options, "--out", run) == 0
    evaluations = [line for line in read_log(run) if line["kind"] == "evaluation"]
    assert [line["step"] for line in evaluations] == [0, 3]
    assert all({"validation_loss", "accuracy", "cider"} < set(line) for line in evaluations)
    assert evaluations[0]["validation_loss"] != evaluations[1]["validation_loss"]
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text("utf-8").splitlines()]
    assert samples and all(Path(sample["images"][0]).is_file() and sample["truth"] for sample in samples)


def test_what_a_chain_measured_is_shown_by_language(capsys: pytest.CaptureFixture[str]) -> None:
    before = {"accuracy": 0.25, "accuracy/de": 0.2}
    after = {"validation_loss": 1.0, "validation_loss/itc": 0.3, "accuracy": 0.5, "accuracy/de": 0.4}
    after |= {"accuracy/zh": 0.6, "recall_at_1/text": 0.7}
    _report_chain([StepResult("warm-up", "tiny/random", 3, before, after)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in (
        ["warm-up", "3", "accuracy", "0.250", "0.500"],
        ["warm-up", "3", "recall_at_1/text", "0.700"],
        ["run", "measured", "language", "before", "after"],
        ["warm-up", "accuracy", "de", "0.200", "0.400"],
        ["warm-up", "accuracy", "zh", "0.600"],
    ):
        assert row in rows
    assert not any("validation_loss" in row for row in rows)


def test_what_marks_are_worth_is_shown_by_shape(capsys: pytest.CaptureFixture[str]) -> None:
    after = {"accuracy": 0.75, "accuracy/arrow": 0.8, "accuracy/mask contour": 0.7}
    after |= {f"unmarked_{name}": value - 0.5 for name, value in after.items()}
    _report_chain([StepResult("stage2", "tiny/random", 3, {}, after)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row[:1] == ["stage2"]] == [
        ["stage2", "3", "accuracy", "0.750"],
        ["stage2", "accuracy", "all", "0.750", "0.250", "+0.500"],
        ["stage2", "accuracy", "arrow", "0.800", "0.300", "+0.500"],
        ["stage2", "accuracy", "mask", "contour", "0.700", "0.200", "+0.500"],
    ]


def test_metrics_need_records(workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["data.validation=[]", "evaluation.metrics=[cider]"]
    assert run_command("train", "tiny/random", *workplace.overrides, *options, "--out", tmp_path / "run") == 1
    assert "evaluation.metrics: there are no records to answer" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_chain_trains_one_run_from_another(
    workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = tmp_path / "chain.yaml"
    steps = [
        {"name": "first", "recipe": "tiny/random"},
        {"name": "second", "recipe": "tiny/random", "start": "first", "change": {"evaluation": {"metrics": ["cider"]}}},
    ]
    chain.write_text(json.dumps({"chain": steps, "every": {"training": {"evaluate_first": True}}}))
    common = [f"every.{override}" for override in workplace.overrides if not override.startswith("data.")]
    rows = [
        {"format": "llava", "path": str(workplace.scenes / name), "images": str(workplace.scenes)}
        for name in ("train.json", "test.json")
    ]
    data = [f"every.data.{part}={json.dumps([row])}" for part, row in zip(("train", "validation"), rows, strict=True)]
    assert run_command("train", chain, *common, *data, "--out", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "cider" in out and "second" in out and "taken: " in out
    first, second = json.loads((tmp_path / "run" / "chain.json").read_text())
    assert second["before"]["validation_loss"] == pytest.approx(first["after"]["validation_loss"], abs=1e-6)
    assert second["after"]["validation_loss"] != second["before"]["validation_loss"]


def test_parts_and_losses_are_shown(
    workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command("train", "tiny/random", *workplace.overrides, "training.steps=1") == 0
    assert (tmp_path / "runs" / "tiny-random" / "model").is_dir()
    out, err = capsys.readouterr()
    assert err == ""
    rows = [line.split() for line in out.splitlines()]
    assert ["connector", "MLPConnector", "random", "weights", "3,936", "trained"] in rows
    assert any(row[:2] == ["vision", "tower"] and row[-1] == "frozen" for row in rows)
    assert any(row[:1] == ["1"] and len(row) == 3 for row in rows), "step, training loss, validation loss"


def test_records_that_cannot_be_used_are_left_out_and_listed(workplace: Workplace, tmp_path: Path) -> None:
    rows = [ROW | {"id": number} for number in range(8)]
    rows[2] = rows[2] | {"image": "images/none.png"}
    rows[5] = rows[5] | {"conversations": ROW["conversations"][:1]}
    name = workplace.write_rows("some_bad.json", rows)
    options = [*workplace.overrides, f"data.train.0.path={name}", "data.no_target=skip", "data.bad_limit=0.2"]
    assert run_command("train", "tiny/random", *options, "--out", tmp_path / "run") == 0
    bad = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert [(sample["id"], sample["counts"]) for sample in bad] == [("2", True), ("5", False)]
    assert "no such picture file" in bad[0]["reason"] and "nothing to learn" in bad[1]["reason"]


@pytest.mark.slow
def test_two_processes_train_as_one(workplace: Workplace, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "sightbridge"]
    options = ["train", "tiny/random", *workplace.overrides, "training.batch_size=2", "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, *options], check=True, env=environment, timeout=600)
    for one, two in zip(read_log(workplace.run), read_log(tmp_path / "run"), strict=True):
        for key in {"loss", "grad_norm", "validation_loss"} & one.keys():
            assert two[key] == pytest.approx(one[key], rel=1e-4)


BAD: dict[str, tuple[str, list[str]]] = {
    "optim.lrr=1": ("override 1: optim.lrr: unknown setting", []),
    "model.connector.layerz=3": ("override 1: model.connector.layerz: ", ["no option 'layerz'"]),
    "model.connector.kind=mpl": ("override 1: model.connector.kind: ", ["Did you mean 'mlp'?"]),
    "model.prompt.template=vicunna_v1": ("override 1: model.prompt.template: ", ["Did you mean 'vicuna_v1'?"]),
    "model.prompt.template=t5_v1": ("override 1: ", ["is for encoder-decoder language models"]),
    "model.prompt.switches.image_frist=true": ("override 1: ", ["Did you mean 'image_first'?"]),
    "model.image.size=48": ("override 1: ", ["the vision tower takes 32"]),
    "model.vision_tower.layers=[9]": ("override 1: model.vision_tower.layers: ", ["Hidden state 9 does not exist"]),
    "model.vision_tower.config.hiden_size=32": ("override 1: ", ["Did you mean 'hidden_size'?"]),
    "model.language_model.config.vocab_size=100": ("", ["the language model knows only 100"]),
    "model.language_model.tokenizer=null": ("override 1: ", ["brings no tokenizer"]),
    "model.language_model.tokenizer=nowhere": ("cannot open a tokenizer in 'nowhere'", []),
    "data.train.0.format=lava": ("override 1: data.train.0.format: ", ["Did you mean 'llava'?"]),
    "data.train.0.path=none.json": ("", ["none.json: cannot read the annotation file"]),
    "data.train=[]": ("override 1: data.train: ", ["at least one source"]),
    "data.train.0.path=markers.json": ("", ["markers.json, row 1", "'image' is 1", "'conversations' is 2"]),
    "data.train.0.path=no_target.json": ("", ["no_target.json, row 1", "nothing to learn", "data.no_target=skip"]),
    "model.prompt.max_length=3": ("", ["train.json, row 1", "do not fit into max_length 3"]),
    "model.language_model.config.max_position_embeddings=20": (
        "",
        ["train.json, row 1", "but the language model has 20. Set model.prompt.max_length=20"],
    ),
    "generation.max_new_tokens=250": ("", ["test.json, row 1", "has 256. Set model.prompt.max_length=6 "]),
    "training.parts.vision_tower.train=full data.cache=memory": ("override 2: ", ["the vision tower trains"]),
    "model.image.augment=crop data.cache=memory": ("override 2: ", ["data.cache_views=4"]),
    "data.cache=nowhere": ("nowhere: no such feature cache. ", ["sightbridge cache tiny/random"]),
    "training.parts.connector.train=frozen": ("", ["every part is frozen"]),
}


@pytest.mark.parametrize("override", BAD)
def test_mistakes_are_one_line_before_anything_is_built(
    override: str,
    workplace: Workplace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build_model(*arguments: object, **options: object) -> None:
        raise AssertionError("a weight was loaded")

    monkeypatch.setattr(run_module, "build_any", build_model)
    messages = [{"from": "human", "value": "<image><image>What?"}, {"from": "gpt", "value": "A star."}]
    workplace.write_rows("markers.json", [ROW | {"conversations": messages}])
    workplace.write_rows("no_target.json", [ROW | {"conversations": ROW["conversations"][:1]}])
    mine = override.split(" ")
    keys = tuple(text.partition("=")[0] for text in mine)
    others = [text for text in workplace.overrides if not text.startswith(keys)]
    assert run_command("train", "tiny/random", *mine, *others, "--out", tmp_path / "run") == 1
    err = capsys.readouterr().err
    begin, parts = BAD[override]
    assert err.startswith(f"error: {begin}")
    assert err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_missing_and_broken_pictures_stop_the_run(
    workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace.scenes / "broken.png").write_bytes(workplace.picture.read_bytes()[:200])
    for image, reason in (("none.png", "no such picture file"), ("broken.png", "truncated or damaged")):
        name = workplace.write_rows("bad_picture.json", [ROW | {"image": image}, ROW, ROW])
        options = [*workplace.overrides, f"data.train.0.path={name}"]
        assert run_command("train", "tiny/random", *options, "--out", tmp_path / image) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: 1 of 3 records cannot be used, more than the limit of 1.00% (data.bad_limit):\n")
        assert reason in err and "Traceback" not in err


def test_a_folder_of_something_else_is_refused(
    workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for flags in ([], ["--overwrite"]):
        assert run_command("train", "tiny/random", *workplace.overrides, "--out", tmp_path, *flags) == 1
        assert (
            capsys.readouterr().err == f"error: {tmp_path}: holds files that are not of a run; choose another folder\n"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "{}/file: is a file, expected the folder"),
        ("file/run", "{}/file: is a file, expected the folder"),
        ("long" * 100, "cannot be made (File name too long); choose another folder"),
    ],
)
def test_a_folder_that_cannot_be_made_is_told_before_anything_is_built(
    out: str,
    message: str,
    workplace: Workplace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sightbridge.training.run.build_start", lambda *_: pytest.fail("weights were loaded"))
    assert run_command("train", "tiny/random", *workplace.overrides, "--out", tmp_path / out) == 1
    assert message.format(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("parent", ["vision", "language"])
def test_parents_go_to_their_own_trainers(
    parent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def trainer(recipe, folder: Path) -> dict[str, Any]:
        called.append((recipe.parent, folder))
        return {"kind": "evaluation", "step": 2, "accuracy/shape": 0.5}

    monkeypatch.setattr(f"sightbridge.parents.{parent}.train_{parent}_parent", trainer)
    recipe = {"vision": "tiny/parent-vision", "language": "tiny/parent-decoder"}[parent]
    assert run_command("train", recipe, "training.steps=2", "--out", tmp_path / "run") == 0
    assert called == [(parent, tmp_path / "run")]
    assert ["accuracy/shape", "0.5000"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert read_recipe(tmp_path / "run" / "settings.yaml").recipe.training.steps == 2
