"""The page of an evaluation: tables per language and type, and pictures with wrong answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightbridge.config.load import write_atomically
from sightbridge.config.task import TaskSettings
from sightbridge.evaluation.metrics import METRICS
from sightbridge.evaluation.predictions import files_of, marked_pictures, read_lines, to_row
from sightbridge.evaluation.results import cleaner, show
from sightbridge.evaluation.task import Task
from sightbridge.pages import render, thumbnail
from sightbridge.text.turns import IMAGE_MARKER

REPORT = "report.html"
EXAMPLES = 12
MOST_TRUTHS = 3


def write_report(out: Path, results: dict[str, Any], settings: dict[str, TaskSettings]) -> Path:
    """Write the page of what ``score`` measured into the evaluation's folder; returns its path."""
    sections = [_section(Task(name, settings[name]), task, out) for name, task in results["tasks"].items()]
    page = render("sightbridge.evaluation", "report.html.jinja", title="Evaluation", results=results, sections=sections)
    write_atomically(out / REPORT, page)
    return out / REPORT


def _section(task: Task, results: dict[str, Any], out: Path) -> dict[str, Any]:
    measured = list(dict.fromkeys(name for part in results["parts"].values() for name in part["values"]))
    rows = []
    for name, part in results["parts"].items():
        rows.append(_row(name, "", part, measured))
        rows += [_row(kind, "inner", group, measured) for kind, group in part["types"].items()]
    if results["mean"]:
        values = {name: {"value": value, "low": None, "high": None} for name, value in results["mean"].items()}
        rows.append(_row("mean", "mean", {"records": "", "values": values}, measured))
    examples = _examples(task, out)
    return {
        "name": task.name,
        "task": results,
        "measured": measured,
        "rows": rows,
        "notes": list(_notes(results)),
        "examples": examples,
        "which": "Wrong answers, a fixed random choice." if examples and examples[0]["wrong"] else "Some answers.",
    }


def _row(name: str, kind: str, part: dict[str, Any], measured: list[str]) -> dict[str, Any]:
    main = part["values"].get(measured[0]) if measured else None
    bar, interval = None, None
    if main and METRICS[measured[0].split("/")[0]].percent:
        bar = 100 * main["value"]
        if main["low"] is not None:
            interval = (100 * main["low"], 100 * (main["high"] - main["low"]))
    cells = [show(value, part["values"][value]["value"]) if value in part["values"] else "-" for value in measured]
    return {"name": name, "kind": kind, "bar": bar, "interval": interval, "records": part["records"], "cells": cells}


def _notes(results: dict[str, Any]) -> Iterator[str]:
    """What was not measured, and why, and who graded."""
    errors = sum(part["errors"] for part in results["parts"].values())
    without = sum(part["without_truth"] for part in results["parts"].values())
    if errors:
        yield f"{errors} records have no answer; their lines say why."
    if without:
        yield f"{without} records have no true answer to be compared with."
    if judges := sorted({judge for part in results["parts"].values() for judge in part["judges"]}):
        yield f"Judged by {', '.join(judges)}."


def _examples(task: Task, out: Path) -> list[dict[str, Any]]:
    """A fixed random choice: of wrong answers, if the main metric tells them from right ones."""
    if task.settings.kind != "answers":
        return []
    metric, clean = METRICS[task.settings.metrics[0]], cleaner(task.settings)
    tells_apart = metric.rows is not None and metric.percent
    lines = [line for part in task.parts() for line in read_lines(files_of(part, out)) if "error" not in line]
    random.Random(0).shuffle(lines)
    if metric.rows is not None and tells_apart:
        rows = [to_row(line, clean) for line in lines]
        measured = zip(lines, rows, strict=True)
        lines = [line for line, row in measured if row.truths and any(v < 0.5 for v in metric.rows([row]).get("", []))]
    return [
        {
            "pictures": [url for source in marked_pictures(line) if (url := thumbnail(source))],
            "question": line["prompt"].replace(IMAGE_MARKER, "").strip(),
            "said": line["answer"] or "(nothing)",
            "truth": "true: " + " / ".join(line["truths"][:MOST_TRUTHS]) if line["truths"] else "",
            "wrong": tells_apart,
        }
        for line in lines[:EXAMPLES]
    ]
