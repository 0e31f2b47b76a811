"""Benchmarks from their published files, end to end with a tiny model; pictures that are not here have a stand-in."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from cli_workplace import Workplace, run_command

from sightbridge.evaluation.task import choose_parts, load_task

PUBLISHED = Path(os.environ.get("SIGHTBRIDGE_PUBLISHED_FILES", Path(__file__).parents[3] / "shared/data"))
"""Files as their publishers give them out; not part of this repository."""
LIMIT = 6
TASKS = {
    "pope": ({"pope/coco_pope_random.json": "pope/coco_pope_random.json"}, ["random"]),
    "xvnli": ({f"xvnli/{code}/test.jsonl": f"xvnli/{code}/test.jsonl" for code in ("en", "fr")}, ["en", "fr"]),
    "marvl": ({f"marvl/marvl-{code}.jsonl": f"marvl/marvl-{code}.jsonl" for code in ("id", "sw")}, ["id", "sw"]),
    "xflickrco": (
        {f"xflickrco/{code}/test.jsonl": f"xflickrco/{code}/test.jsonl" for code in ("de", "en")},
        ["de", "en"],
    ),
    "xgqa": ({f"xgqa/{code}/train_5.json": f"xgqa/{code}/test.json" for code in ("de", "id")}, ["de", "id"]),
    "tifa160": ({f"tifa160/{name}": f"tifa160/{name}" for name in ("tifa160.json", "dsg_tifa160_anns.csv")}, []),
}


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
@pytest.mark.parametrize("name", TASKS)
def test_a_published_file_is_evaluated(
    workplace: Workplace, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies, parts = TASKS[name]
    for published, wanted in copies.items():
        (tmp_path / wanted).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PUBLISHED / published, tmp_path / wanted)
    for part in choose_parts([load_task(name)], parts)[0]:
        for item in part.read(tmp_path, LIMIT):
            for image in map(Path, item.images):
                image.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(workplace.picture, image)
    chosen = [argument for part in parts for argument in ("--part", part)]
    short = [] if name == "tifa160" else [f"{name}.generation.max_new_tokens=3", f"{name}.generation.num_beams=1"]
    command = ["evaluate", workplace.model, name, *short, "--data", tmp_path, "--out", tmp_path / "out", *chosen]
    long = name == "marvl"  # two pictures and a long statement are more than the tiny model takes
    assert run_command(*command, "--limit", LIMIT) == int(long), capsys.readouterr().err
    results = json.loads((tmp_path / "out/results.json").read_text("utf-8"))["tasks"][name]
    assert list(results["parts"]) == (parts or ["all"])
    for part in results["parts"].values():
        assert part["records"] + part["without_truth"] + part["errors"] == LIMIT
        assert long == bool(part["errors"]) and (long or part["values"])
