"""``evaluate``, ``rescore`` and ``tasks``: answers on disk, resumed, measured again; what is missing is told first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_workplace import Workplace, run_command

from sightbridge.checkpoints.atomic import alone_in
from sightbridge.cli.arguments import complete_task

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


def test_how_pictures_and_texts_were_scored_stands_beside_the_values(workplace: Workplace, data: Path) -> None:
    picture = str(workplace.picture)
    row = {"id": 0, "image_0": picture, "image_1": picture, "caption_0": "a b", "caption_1": "b a"}
    (data / "rows.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    (data / "fit.yaml").write_text("base: winoground\npath: rows.jsonl\nscore: {reduction: yes_no}\n", "utf-8")
    assert run(workplace, data, task="fit.yaml") == 0
    (way,) = json.loads((data / "out/results.json").read_text("utf-8"))["tasks"]["fit"]["parts"]["all"]["scored"]
    assert (way["kind"], way["reduction"]) == ("vqascore", "yes_no") and "figure show" in way["question_template"]
    assert "Scored by vqascore: Does this figure" in (data / "out/report.html").read_text("utf-8")


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
        (["xgqa", "--part", "xx"], "no task has a part 'xx'"),
        (["pope.prompt=x"], "at least one task"),
        (["xgqa", "pope.prompt=x"], "one of the tasks xgqa"),
        (["xgqa", "xgqa.prompts=x"], "unknown setting"),
        (["xgqa", "xgqa.metrics=[acuracy]"], "Did you mean 'accuracy'"),
        (["xgqa", "xgqa.clean=vqua"], "unknown post-processing"),
        (["xgqa", "xgqa.reader=gqua"], "unknown reader"),
        (["xgqa", "xgqa.options={splitt: val}"], "has no option 'splitt'"),
        (["coco_caption", "coco_caption.options={splitt: val}"], "Did you mean 'split'"),
        (["xgqa", "xgqa.score={k: 3}"], "'score' of a task of answers has no k"),
        (["flickr30k_retrieval", "flickr30k_retrieval.score={k: x}"], "a number of candidates, got 'x'"),
        (["winoground", "winoground.score={reduction: geomen}"], "Did you mean 'geomean'"),
        (["pope", "pope.splits=[../x]"], "a part is a file of answers"),
        (["pope", "pope.splits=[a, a]"], "once, got 'a'"),
        (["pope", "pope.prompt='{} in {language}'"], "there are no 'languages'"),
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


def test_a_run_is_measured_by_tasks_while_it_trains(
    workplace: Workplace, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace.scenes / "questions.json").write_text((data / "questions.json").read_text("utf-8"), "utf-8")
    command = ["train", "tiny/random", *workplace.overrides, "--out", tmp_path / "run"]
    tasks = [f"evaluation.tasks=[{data / 'mine.yaml'}]", "training.best=mine/accuracy", "training.best_mode=max"]
    assert run_command(*command, *tasks, "training.evaluate_every=3", "evaluation.records=4") == 0
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text("utf-8").splitlines()]
    evaluated = [line for line in log if line["kind"] == "evaluation"]
    assert evaluated and all("mine/accuracy" in line and "mine/relaxed_accuracy" in line for line in evaluated)
    (workplace.scenes / "questions.json").unlink()
    capsys.readouterr()
    assert run_command(*command, *tasks, "--overwrite") == 1 and "missing" in capsys.readouterr().err
    elsewhere = [f"evaluation.root={data}", "evaluation.records=1", "training.evaluate_every=3", "--overwrite"]
    assert run_command(*command, *tasks, *elsewhere) == 0


def test_tasks_that_a_run_cannot_be_measured_by(
    workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "tiny/random", *workplace.overrides, "--out", tmp_path / "run"]
    assert run_command(*command, "evaluation.tasks=[winoground]") == 1
    assert "compares pictures and texts" in capsys.readouterr().err
    assert run_command(*command, "evaluation.tasks=[coco_caption]") == 1
    assert "annotation files are missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metric", "wants"),
    [
        ("chair", "objects are known"),
        ("pope", "yes or no"),
        ("recall", "ranks of retrieval"),
        ("two_by_two", "two pictures with two texts"),
        ("preferred", "one of them preferred"),
        ("auc", "whether they fit"),
        ("pearson", "people's rating"),
    ],
)
def test_a_metric_of_something_else_is_told_before_anything_is_answered(
    workplace: Workplace, data: Path, metric: str, wants: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workplace, data, f"mine.metrics=[accuracy, {metric}]") == 1
    said = capsys.readouterr().err
    assert f"'{metric}' measures" in said and wants in said and "row 1" in said
    assert not (data / "out").exists()


def test_records_of_one_id_are_told_before_anything_is_answered(
    workplace: Workplace, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((data / "questions.json").read_text("utf-8"))
    (data / "questions.json").write_text(json.dumps([*rows, rows[2]]), "utf-8")
    assert run(workplace, data) == 1
    assert "row 11: a second record '2'" in capsys.readouterr().err
    assert not (data / "out").exists()


def test_a_question_with_half_a_character_is_a_line_with_an_error(workplace: Workplace, data: Path) -> None:
    rows = json.loads((data / "questions.json").read_text("utf-8"))
    rows[0] |= {"question": "a \ud83d b"}
    rows[1] |= {"answer": "a \ud83d b"}
    (data / "questions.json").write_text(json.dumps(rows), "utf-8")
    assert run(workplace, data) == 1
    assert [line["id"] for line in lines(data) if "error" in line] == ["0"] and len(lines(data)) == 10
    assert "half a character" in lines(data)[0]["error"] and lines(data)[0]["prompt"].endswith("a ? b")


def test_tasks_of_one_name_are_told(workplace: Workplace, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "pope.yaml").write_text(TASK.format(more=""), "utf-8")
    assert run(workplace, data, "pope", task="pope.yaml") == 1
    assert "two of the tasks are called 'pope'" in capsys.readouterr().err


def test_a_record_without_an_answer_is_tried_again(workplace: Workplace, data: Path, tmp_path: Path) -> None:
    rows = json.loads((data / "questions.json").read_text("utf-8"))
    picture = tmp_path / "later.png"
    there, rows[3]["image"] = rows[3]["image"], str(picture)
    (data / "questions.json").write_text(json.dumps(rows), "utf-8")
    assert run(workplace, data, "--allow-missing") == 1
    picture.write_bytes(Path(there).read_bytes())
    assert run(workplace, data) == 0
    part = json.loads((data / "out/results.json").read_text("utf-8"))["tasks"]["mine"]["parts"]["all"]
    assert part["records"] == 10 and part["errors"] == 0
    assert [line["id"] for line in lines(data)] == [str(n) for n in range(10)], "one line of each, in its place"


def test_tasks_without_the_wanted_parts_are_left_out_and_told(
    workplace: Workplace, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, codes in (("some", "[de, sw]"), ("other", "[fr]")):
        text = TASK.format(more=f"languages: {codes}").replace("questions.json", "'{part}.json'")
        (data / f"{name}.yaml").write_text(text, "utf-8")
    for code in ("de", "sw", "fr"):
        (data / f"{code}.json").write_text((data / "questions.json").read_text("utf-8"), "utf-8")
    tasks = [data / "other.yaml", "--limit", 2]
    whole = data / "mine.yaml"  # of one file, so languages do not choose in it
    assert run(workplace, data, *tasks, whole, "--languages", "sw,de", task="some.yaml") == 0
    told = capsys.readouterr()
    assert "other is left out: no sw, de: it has fr" in told.err and "other was left out" in told.out
    results = json.loads((data / "out/results.json").read_text("utf-8"))
    assert (
        list(results["tasks"]["some"]["parts"]) == ["de", "sw"]
        and "mine" in results["tasks"]
        and list(results["left_out"]) == ["other"]
    )
    assert "other was left out: no sw, de" in (data / "out/report.html").read_text("utf-8")
    assert (
        run(workplace, data, *tasks, "--language", "fr", task="some.yaml") == 0
    )  # now it is there, and the other stays
    results = json.loads((data / "out/results.json").read_text("utf-8"))
    assert set(results["tasks"]) == {"some", "other", "mine"} and not results["left_out"]
    assert run(workplace, data, *tasks, "--language", "ed", task="some.yaml") == 1
    assert "no task has a part 'ed': task 'some' has de, sw; task 'other' has fr" in capsys.readouterr().err


def test_overwriting_leaves_nothing_of_another_model(workplace: Workplace, data: Path) -> None:
    two = TASK.format(more="splits: [questions, others]").replace("questions.json", "'{part}.json'")
    (data / "two.yaml").write_text(two, "utf-8")
    (data / "others.json").write_text((data / "questions.json").read_text("utf-8"), "utf-8")
    assert run(workplace, data, task="two.yaml") == 0
    grades = data / "out/predictions/two/questions.grades.jsonl"
    grades.write_text('{"id": "0", "run": 0, "judge": "m", "grade": 1.0}\n', "utf-8")
    assert run(workplace, data, "--overwrite", "--limit", 3, "--part", "questions", task="two.yaml") == 0
    results = json.loads((data / "out/results.json").read_text("utf-8"))
    assert list(results["tasks"]["two"]["parts"]) == ["questions"] and not grades.exists()


def test_the_page_says_who_graded(workplace: Workplace, data: Path) -> None:
    assert run(workplace, data, "mine.metrics=[judged]") == 0
    grades = data / "out/predictions/mine/all.grades.jsonl"
    given = [{"id": str(n), "run": 0, "judge": "gpt-x", "grade": grade} for n, grade in enumerate((1.0, 0.2))]
    grades.write_text("".join(json.dumps(one) + "\n" for one in given), "utf-8")
    assert run_command("rescore", data / "out") == 0
    page = (data / "out/report.html").read_text("utf-8")
    assert "Judged by gpt-x." in page and "number 1?" in page and "number 0?" not in page, (
        "what was graded low is shown"
    )


def test_the_page_shows_wrong_answers_of_measures_of_all_rows_too(workplace: Workplace, data: Path) -> None:
    picture = str(workplace.picture)
    labels = ["yes", "no"] * 3
    asked = enumerate(labels)
    lines = [{"question_id": n, "image": picture, "text": f"Is there a {n}?", "label": one} for n, one in asked]
    (data / "pope").mkdir()
    (data / "pope/coco_pope_random.json").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    out = data / "pope_out"
    assert run_command("evaluate", workplace.model, "pope", "--part", "random", "--data", data, "--out", out) == 0
    said = [json.loads(line) for line in (out / "predictions/pope/random.jsonl").read_text("utf-8").splitlines()]
    for number, line in enumerate(said):
        line["answer"] = labels[number] if number else "no"  # but the first, all right
    (out / "predictions/pope/random.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said), "utf-8")
    assert run_command("rescore", out) == 0
    page = (out / "report.html").read_text("utf-8")
    assert "Wrong answers" in page and "Is there a 0?" in page and "Is there a 1?" not in page
    assert "83.3 <span" in page and "±" in page, "five of six, and the interval"


def test_two_runs_do_not_write_into_one_folder(
    workplace: Workplace, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workplace, data) == 0
    with alone_in(data / "out", data / "out"):
        assert run(workplace, data, "--overwrite") == 1
    assert "another process is writing it" in capsys.readouterr().err and len(lines(data)) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged: 'model'"),
        ('{"model": "m", "limit": null, "tasks": 3}', "damaged"),
        ('{"model": "m", "limit": null, "tasks": {"mine": {"reader": 1}}}', "task 'mine' cannot be read"),
    ],
)
def test_a_damaged_run_is_told(
    workplace: Workplace, data: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "out").mkdir()
    (data / "out/run.json").write_text(text, "utf-8")
    assert run(workplace, data) == 1
    assert f"run.json: {message}" in capsys.readouterr().err
    assert run_command("rescore", data / "out") == 1
    assert f"run.json: {message}" in capsys.readouterr().err


def test_metrics_of_a_run_can_be_edited(workplace: Workplace, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(workplace, data) == 0
    path = data / "out/run.json"
    before = path.read_text("utf-8")
    path.write_text(before.replace('"accuracy"', '"contains_truth"'), "utf-8")
    assert run_command("rescore", data / "out") == 0
    assert "contains_truth" in capsys.readouterr().out
    path.write_text(before.replace('"accuracy"', '"acuracy"'), "utf-8")
    assert run_command("rescore", data / "out") == 1
    assert "Did you mean 'accuracy'" in capsys.readouterr().err
    path.write_text(before.replace('"accuracy"', '"chair"'), "utf-8")
    assert run_command("rescore", data / "out") == 1
    assert "the metric 'chair' measures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": None}, "answer: Input should be a valid string"),
        ({"truths": "a bus"}, "truths: Input should be a valid list"),
        ({"truths": [3]}, "truths.0"),
        ({"meta": 3}, "meta: Input should be a valid dictionary"),
        ({"meta": {"tags": 3}}, "'tags' should be a list"),
        ({"id": [1]}, "id: Input should be a valid string"),
    ],
)
def test_a_line_that_was_edited_wrongly_is_told(
    workplace: Workplace, data: Path, changes: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workplace, data, "--limit", 2) == 0
    path = data / "out/predictions/mine/all.jsonl"
    path.write_text("".join(json.dumps(line | changes) + "\n" for line in lines(data)), "utf-8")
    assert run_command("rescore", data / "out") == 1
    said = capsys.readouterr().err
    assert "all.jsonl, line 1: not a line of answers" in said and message in said


def test_a_file_of_answers_that_is_no_text_is_told(
    workplace: Workplace, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workplace, data, "--limit", 2) == 0
    (data / "out/predictions/mine/all.jsonl").write_bytes(b"\xff\n")
    assert run_command("rescore", data / "out") == 1
    assert "all.jsonl, line 1: not UTF-8" in capsys.readouterr().err


def test_names_of_tasks_are_completed() -> None:
    assert complete_task("scenes/st") == ["scenes/statements"] and "xgqa" in complete_task("")


@pytest.mark.slow
def test_two_processes_share_the_records_and_measure_what_one_does(workplace: Workplace, data: Path) -> None:
    assert run(workplace, data) == 0
    alone = json.loads((data / "out/results.json").read_text("utf-8"))["tasks"]
    command = ["evaluate", workplace.model, data / "mine.yaml", "--data", data, "--out", data / "both"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "sightbridge"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *map(str, command), "--batch-size", "2"], check=True, env=environment, timeout=300)
    files = [data / f"both/predictions/mine/{name}.jsonl" for name in ("all", "all.1")]
    ids = [[json.loads(line)["id"] for line in file.read_text("utf-8").splitlines()] for file in files]
    assert ids == [["0", "2", "4", "6", "8"], ["1", "3", "5", "7", "9"]]
    assert json.loads((data / "both/results.json").read_text("utf-8"))["tasks"] == alone
