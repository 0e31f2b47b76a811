"""From answers on disk to numbers: every metric of every part, per type of question, and the mean over parts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import sightbridge
from sightbridge.config.load import write_atomically
from sightbridge.config.task import TaskSettings
from sightbridge.evaluation.judge import read_grades
from sightbridge.evaluation.metrics import CLEANERS, METRICS, Row, Value, measure
from sightbridge.evaluation.predictions import files_of, read_lines, to_row
from sightbridge.evaluation.run import read_run, segmenters
from sightbridge.evaluation.task import Part, Task

RESULTS = "results.json"
MOST_TYPES = 80
"""Beyond so many types of questions, a table of them says nothing."""


def read_settings(out: Path) -> dict[str, TaskSettings]:
    """Settings of every task of an evaluation; raises ``DataError`` for a folder that holds none."""
    return read_run(out)["tasks"]


def score(out: Path) -> dict[str, Any]:
    """Measure all answers in a folder, write ``results.json`` and return what is in it.

    No model takes part, so it may be done again after a metric was changed: what was asked and how answers are
    measured is read from ``run.json``.

    Raises ``DataError`` for a folder that holds no evaluation, or answers that are damaged.
    """
    run = read_run(out)
    tasks = [Task(name, settings) for name, settings in run["tasks"].items()]
    results = {
        "model": run["model"],
        "limit": run["limit"],
        "sightbridge": sightbridge.__version__,
        "tasks": {task.name: _task_results(task, out) for task in tasks},
        "left_out": run["left_out"],
    }
    write_atomically(out / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


def cleaner(settings: TaskSettings) -> Callable[[str], str]:
    """What a task does to answers before they are measured."""
    return CLEANERS[settings.clean] if settings.clean else str


def _task_results(task: Task, out: Path) -> dict[str, Any]:
    answered = [part for part in task.parts() if files_of(part, out)]
    parts = {part.name or "all": _part_results(part, out) for part in answered}
    names = {name for part in parts.values() for name in part["values"]}
    means = {
        name: mean(part["values"][name]["value"] for part in parts.values() if name in part["values"]) for name in names
    }
    settings = task.settings
    return {
        "version": settings.version,
        "description": settings.description,
        "prompt": settings.prompt,
        "clean": settings.clean,
        "generation": settings.generation.model_dump(mode="json", exclude_defaults=True),
        "metrics": settings.metrics,
        "segmenters": {code: version for part in answered for code, version in segmenters(part).items()},
        "parts": parts,
        "mean": {name: means[name] for name in sorted(means)} if len(parts) > 1 else {},
    }


def _part_results(part: Part, out: Path) -> dict[str, Any]:
    rows, errors, unmeasured = read_rows(part, out)
    shown = group(rows)
    return {
        "records": len(rows),
        "errors": errors,
        "without_truth": unmeasured,
        "judges": sorted({grade.judge for grade in read_grades(part, out)}),
        "scored": read_scored(part, out),
        "values": _measured(part.task.settings.metrics, rows),
        "types": {
            name: {"records": len(own), "values": _measured(part.task.settings.metrics, own)}
            for name, own in shown.items()
        },
    }


def group(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by language, type of answer, type of question and tag, each only where there are several, not too many.

    A type that is called like a tag has the records of this type alone: in ViP-Bench "ocr" is every question that needs
    to read, whatever else it needs, and "ocr alone" those that need nothing else.
    """
    languages, types, questions, tags = (defaultdict[str, list[Row]](list) for _ in range(4))
    for row in rows:
        languages[row.language].append(row)
        types[str(row.meta.get("answer_type") or row.meta.get("type") or "other")].append(row)
        if "question_type" in row.meta:
            questions[str(row.meta["question_type"])].append(row)
        for tag in row.meta.get("tags", ()):
            tags[str(tag)].append(row)
    types = {f"{name} alone" if name in tags else name: own for name, own in types.items()}
    several = [groups for groups in (languages, types, questions, tags) if 1 < len(groups) <= MOST_TYPES]
    return {name: groups[name] for groups in several for name in sorted(groups)}


def read_rows(part: Part, out: Path) -> tuple[list[Row], int, int]:
    """The answers to a part as rows; how many have an error instead, and how many no true answer to compare with."""
    settings = part.task.settings
    clean = cleaner(settings)
    rows, errors, unmeasured = [], 0, 0
    grades: dict[str, list[float]] = defaultdict(list)
    for grade in read_grades(part, out):
        grades[grade.id].append(grade.grade)
    for line in read_lines(files_of(part, out)):
        if "error" in line:
            errors += 1
        elif "answer" in line and not line["truths"]:
            unmeasured += 1
        else:
            row = to_row(line, clean)
            rows.append(replace(row, meta=row.meta | {"grades": grades[row.id]}) if row.id in grades else row)
    return rows, errors, unmeasured


def read_scored(part: Part, out: Path) -> list[dict[str, Any]]:
    """How the pictures and texts of a part were scored: kind of score, templates, reduction; each way once."""
    ways = [line["scored"] for line in read_lines(files_of(part, out)) if line.get("scored")]
    return list({json.dumps(way, sort_keys=True): way for way in ways}.values())


def _measured(metrics: Sequence[str], rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    if not rows:
        return {}
    values: dict[str, Value] = {}
    for name in metrics:
        values |= measure(name, rows)
    return {name: asdict(value) for name, value in values.items()}


def show(name: str, value: float) -> str:
    """A value as it is printed: shares in percent."""
    percent = METRICS[name.split("/")[0]].percent
    return f"{100 * value:.1f}" if percent else f"{value:.3f}"
