"""``evaluate``, ``rescore`` and ``tasks``: answers on disk, resumed, measured again; what is missing is told first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_workplace import Workplace, run_command

TASK = """
description: questions of the workplace
get: nothing, the test writes it
reader: vqa
path: questions.json
images: .
generation: {{max_new_tokens: 3}}
metrics: [accuracy, relaxed_accuracy]
{more}
"""


@pytest.fixture
def data(workplace: Workplace, tmp_path: Path) -> Path:
    pictures = sorted(workplace.picture.parent.glob("*.png"))
    rows = [
        {
            "image": str(pictures[number % len(pictures)]),
            "question": f"What is it, number {number}?",
            "answer": ["a bus"],
            "question_id": number,
            "type": "odd" if number % 2 else "even",
        }
        for number in range(10)
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "questions.json").write_text(json.dumps(rows), "utf-8")
    (folder / "mine.yaml").write_text(TASK.format(more=""), "utf-8")
    return folder


def run(workplace: Workplace, data: Path, *more: object, task: str = "mine.yaml") -> int:
    command = ["evaluate", workplace.model, data / task, "--data", data, "--out", data / "out", "--batch-size", 2]
    return run_command(*command, *more)


def lines(data: Path) -> list[dict]:
    return [json.loads(line) for line in (data / "out/predictions/mine/all.jsonl").read_text("utf-8").splitlines()]


def test_every_record_is_answered_measured_and_shown(
    workplace: Workplace, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workplace, data) == 0
    assert [line["id"] for line in lines(data)] == [str(number) for number in range(10)]
    results = json.loads((data / "out/results.json").read_text("utf-8"))
    part = results["tasks"]["mine"]["parts"]["all"]
    right = sum(line["answer"].strip().casefold() == "a bus" for line in lines(data))
    assert part["records"] == 10 and part["values"]["accuracy"]["value"] == right / 10
    assert set(part["types"]) == {"even", "odd"}
    assert "questions of the workplace" in capsys.readouterr().out
    page = (data / "out/report.html").read_text("utf-8")
    assert "What is it, number" in page and "data:image/jpeg;base64," in page and "http://" not in page


def test_a_killed_run_goes_on_and_gives_the_same(workplace: Workplace, data: Path) -> None:
    assert run(workplace, data) == 0
    whole = lines(data)
    path = data / "out/predictions/mine/all.jsonl"
    kept = path.read_text("utf-8").splitlines(keepends=True)[:4]
    path.write_text("".join(kept) + '{"id": "4", "ans', "utf-8")
    assert run(workplace, data) == 0
    assert lines(data) == whole


def test_rescore_measures_what_is_on_disk(workplace: Workplace, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(workplace, data) == 0
    path = data / "out/predictions/mine/all.jsonl"
    changed = [line | {"answer": "A bus "} for line in lines(data)]
    path.write_text("".join(json.dumps(line) + "\n" for line in changed), "utf-8")
    capsys.readouterr()
    assert run_command("rescore", data / "out") == 0
    assert "100.0" in capsys.readouterr().out


def test_other_settings_or_another_limit_do_not_mix(
    workplace: Workplace, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workplace, data) == 0
    assert run(workplace, data, "mine.prompt=Say {}") == 1
    assert "other settings (prompt)" in capsys.readouterr().err
    assert run(workplace, data, "--limit", 3) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run(workplace, data, "--limit", 3, "--overwrite") == 0
    assert len(lines(data)) == 3


def test_missing_files_are_told_before_the_model_is_loaded(
    workplace: Workplace, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_model = tmp_path / "no-model"
    assert run_command("evaluate", no_model, "xgqa", "pope", "--data", data) == 1
    said = capsys.readouterr().err
    assert "xgqa/de" in said and "pope/random" in said and "github.com/AoiDragon/POPE" in said
    rows = json.loads((data / "questions.json").read_text("utf-8"))
    rows[3]["image"] = "gone.png"
    (data / "questions.json").write_text(json.dumps(rows), "utf-8")
    assert run(workplace, data) == 1
    assert "1 of" in (said := capsys.readouterr().err) and "gone.png" in said and "--allow-missing" in said
    assert run(workplace, data, "--allow-missing") == 1
    assert "1 records have no answer" in capsys.readouterr().err
    assert "gone.png" in lines(data)[3]["error"] and len(lines(data)) == 10
    results = json.loads((data / "out/results.json").read_text("utf-8"))
    assert results["tasks"]["mine"]["parts"]["all"]["records"] == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["xgqq"], "Did you mean 'xgqa'"),
        (["gone.yaml"], "does not exist"),
        (["xgqa", "--part", "xx"], "has no part 'xx'"),
        (["pope.prompt=x"], "at least one task"),
        (["xgqa", "pope.prompt=x"], "one of the tasks xgqa"),
        (["xgqa", "xgqa.prompts=x"], "unknown setting"),
        (["xgqa", "xgqa.metrics=[acuracy]"], "Did you mean 'accuracy'"),
        (["xgqa", "xgqa.clean=vqua"], "unknown post-processing"),
        (["xgqa", "xgqa.reader=gqua"], "unknown reader"),
    ],
)
def test_wrong_tasks(
    workplace: Workplace, data: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("evaluate", workplace.model, *arguments, "--data", data) == 1
    assert message in capsys.readouterr().err


def test_a_damaged_file_of_answers_is_told(
    workplace: Workplace, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workplace, data) == 0
    path = data / "out/predictions/mine/all.jsonl"
    path.write_text('{"id": 1}\n', "utf-8")
    capsys.readouterr()
    assert run_command("rescore", data / "out") == 1
    assert "all.jsonl, line 1" in capsys.readouterr().err
    assert run_command("rescore", data) == 1
    assert "not the folder of an evaluation" in capsys.readouterr().err


def test_tasks_lists_all_and_tells_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("tasks") == 0
    said = capsys.readouterr().out
    assert "xm3600" in said and "mblip/vqav2" in said
    assert run_command("tasks", "xgqa") == 0
    assert "Short answer in English:" in capsys.readouterr().out


def test_a_run_is_measured_by_tasks_while_it_trains(workplace: Workplace, data: Path, tmp_path: Path) -> None:
    (workplace.scenes / "questions.json").write_text((data / "questions.json").read_text("utf-8"), "utf-8")
    command = ["train", "tiny/random", *workplace.overrides, "--out", tmp_path / "run"]
    tasks = [f"evaluation.tasks=[{data / 'mine.yaml'}]", "training.best=mine/accuracy", "training.best_mode=max"]
    assert run_command(*command, *tasks, "training.evaluate_every=3", "evaluation.records=4") == 0
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text("utf-8").splitlines()]
    evaluated = [line for line in log if line["kind"] == "evaluation"]
    assert evaluated and all("mine/accuracy" in line and "mine/relaxed_accuracy" in line for line in evaluated)


def test_tasks_that_a_run_cannot_be_measured_by(
    workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "tiny/random", *workplace.overrides, "--out", tmp_path / "run"]
    assert run_command(*command, "evaluation.tasks=[winoground]") == 1
    assert "compares pictures and texts" in capsys.readouterr().err
    assert run_command(*command, "evaluation.tasks=[coco_caption]") == 1
    assert "annotation files are missing" in capsys.readouterr().err
