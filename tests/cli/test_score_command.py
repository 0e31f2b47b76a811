"""``sightbridge score``: tables, files, pages, shares of a run."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from cli_workplace import Workplace, run_command

from sightbridge.cli.score import repeat_names
from sightbridge.scoring import load_scorer

TEXTS = ["a red circle", "a blue square", "<b>two</b> stars & more"]


@pytest.fixture
def pictures(workplace: Workplace, tmp_path: Path) -> list[Path]:
    folder = tmp_path / "pictures"
    shutil.copytree(workplace.picture.parent, folder)
    return sorted(folder.glob("*.png"))


def test_lists_of_values_are_read_up_to_the_next_option() -> None:
    given = ["M", "--images", "a", "b=c", "--texts", "x y", "z", "--html", "p", "--texts=-5 degrees", "--images"]
    expected = ["M", "--images=a", "--images=b=c", "--texts=x y", "--texts=z", "--html", "p", "--texts=-5 degrees"]
    assert repeat_names(given) == [*expected, "--images"]


def test_files_and_page_hold_the_table(
    workplace: Workplace, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = load_scorer(workplace.model).score(pictures, TEXTS)
    command = ["score", workplace.model, "--images", *pictures, "--texts", *TEXTS, "--trace"]
    for suffix in ("json", "jsonl", "csv"):
        out, html = tmp_path / f"out.{suffix}", tmp_path / f"{suffix}.html"
        assert run_command(*command, "--out", out, "--html", html) == 0
    printed = capsys.readouterr().out
    assert printed.count("★") == 3 * 4 and all(text in printed for text in TEXTS) and "Does this figure show" in printed
    whole = json.loads((tmp_path / "out.json").read_text())
    record = json.loads((tmp_path / "out.csv.record.json").read_text())
    assert whole["record"] == record["record"] and whole["record"]["reduction"] == "geomean" and not whole["skipped"]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    for found in (whole["scores"], lines, rows):
        values = torch.tensor([float(row["score"]) for row in found]).reshape(4, 3)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=0)
        assert [row["text"] for row in found[:3]] == TEXTS and found[3]["image"] == str(pictures[1])
    assert lines[0]["tokens"][-1][0] == "</s>" and json.loads(rows[0]["tokens"]) == lines[0]["tokens"]
    page = (tmp_path / "csv.html").read_text()
    assert page.count("data:image/jpeg") == 4 and page.count("★") == 4
    assert "&lt;b&gt;two" in page and "<b>two" not in page
    assert not re.search(r'(src|href)="(?!data:)', page), "it loads nothing from elsewhere"


def test_a_page_that_cannot_be_written_is_told_by_its_option(
    pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "nowhere/page.html"
    assert run_command("score", "no-model", "--images", pictures[0], "--texts", "a", "--html", page) == 1
    assert capsys.readouterr().err == f"error: --html: cannot write a file at {page}\n"


def test_pairs_are_scored_as_pairs(
    workplace: Workplace, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "pairs.csv", tmp_path / "out.jsonl"
    rows = [(pictures[i], TEXTS[j]) for i, j in ((0, 0), (2, 1), (0, 2), (3, 0))]
    file.write_text("text,image\n" + "".join(f'"{text}",pictures/{path.name}\n' for path, text in rows))
    assert run_command("score", workplace.model, "--pairs", file, "--out", out, "--html", tmp_path / "page.html") == 0
    table = load_scorer(workplace.model).score(pictures, TEXTS)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    expected = [table[0, 0], table[2, 1], table[0, 2], table[3, 0]]
    assert [row["score"] for row in found] == pytest.approx([value.item() for value in expected], rel=1e-5)
    assert [(Path(row["image"]), row["text"]) for row in found] == rows


def test_shares_of_a_run_meet_in_the_store(
    workplace: Workplace, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["score", workplace.model, "--texts", *TEXTS, "--store", tmp_path / "s.sqlite", "--images", *pictures]
    for part in (1, 2):
        assert run_command(*common, "--shard", f"{part}/2", "--out", tmp_path / f"{part}.csv") == 0
    names = [row["image"] for part in (1, 2) for row in csv.DictReader((tmp_path / f"{part}.csv").open())]
    assert sorted(names) == sorted(str(path) for path in pictures for _ in TEXTS)
    from sightbridge.scoring.likelihood import AnswerLikelihood

    monkeypatch.setattr(AnswerLikelihood, "encode", lambda *_: pytest.fail("all of it is in the store"))
    assert run_command(*common, "--out", tmp_path / "whole.csv") == 0
    assert len(list(csv.DictReader((tmp_path / "whole.csv").open()))) == 12


def test_skipped_pictures_are_in_every_output(
    workplace: Workplace, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures[1].write_bytes(b"no picture")
    command = ["score", workplace.model, "--images", pictures[0].parent, "--texts", *TEXTS[:2]]
    assert run_command(*command) == 1
    assert f"error: {pictures[1]}: not a picture" in capsys.readouterr().err
    out, html = tmp_path / "out.csv", tmp_path / "out.html"
    assert run_command(*command, "--on-error", "skip", "--out", out, "--html", html) == 1
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 8 and rows[2]["score"] == "" and "not a picture" in rows[2]["error"]
    assert "not a picture" in html.read_text() and "1 of 4 pictures could not" in html.read_text()
    assert str(pictures[1]) in json.loads((tmp_path / "out.csv.record.json").read_text())["skipped"]


def test_mistakes_are_found_before_a_model_is_loaded(
    workplace: Workplace, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.csv").write_text("precious")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pairs.csv").write_text(f"image,text\n{pictures[0]},a\ngone.png,b\n")
    both = ["--images", pictures[0], "--texts", "a"]
    for arguments, message in (
        (["--texts", "a"], "give pictures with --images"),
        (["--images", pictures[0]], "and texts with --texts"),
        (["--images", tmp_path / "gone.png", "--texts", "a"], "gone.png: no such picture"),
        (["--images", tmp_path / "empty", "--texts", "a"], "holds no pictures"),
        (["--pairs", tmp_path / "pairs.csv"], "gone.png: no such picture"),
        (["--pairs", tmp_path / "pairs.csv", "--texts", "a"], "leave out"),
        ([*both, "--out", tmp_path / "there.csv"], "there already"),
        ([*both, "--out", tmp_path / "x.xlsx"], ".csv"),
        ([*both, "--shard", "3/2"], "I/N"),
        ([*both, "--kind", "options"], "--question-template"),
        ([*both, "--shard", "2/2"], "fewer pictures than shares"),
    ):
        assert run_command("score", tmp_path / "no model", *arguments) == 1
        out, err = capsys.readouterr()
        assert out == "" and message in err and "Traceback" not in err, arguments
    assert (tmp_path / "there.csv").read_text() == "precious"
    assert run_command("score", tmp_path / "no model", *both) == 1
    assert "no model" in capsys.readouterr().err
