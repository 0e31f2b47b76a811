"""The page of an evaluation: tables per language and type, and pictures with wrong answers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightbridge.config.load import write_atomically
from sightbridge.config.task import TaskSettings
from sightbridge.evaluation.metrics import METRICS, Row
from sightbridge.evaluation.predictions import files_of, marked_pictures, read_lines, to_row
from sightbridge.evaluation.results import read_rows, show
from sightbridge.evaluation.task import Part, Task
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
    examples = _examples(task, measured[0].split("/")[0] if measured else None, out)
    return {
        "name": task.name,
        "answers": task.settings.kind == "answers",
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
    cells = [_cell(value, part["values"].get(value)) for value in measured]
    return {"name": name, "kind": kind, "bar": bar, "interval": interval, "records": part["records"], "cells": cells}


def _cell(name: str, value: dict[str, Any] | None) -> tuple[str, str]:
    """A value, and half of the interval around it, as far as there are these."""
    if value is None:
        return "-", ""
    if value["low"] is None:
        return show(name, value["value"]), ""
    return show(name, value["value"]), f"±{show(name, (value['high'] - value['low']) / 2)}"


def _notes(results: dict[str, Any]) -> Iterator[str]:
    """What was not measured, and why, and who graded."""
    errors = sum(part["errors"] for part in results["parts"].values())
    without = sum(part["without_truth"] for part in results["parts"].values())
    if errors:
        yield f"{errors} records have no answer; their lines say why."
    if without:
        yield f"{without} records have no true answer to be compared with."
    for way in {json.dumps(way): way for part in results["parts"].values() for way in part["scored"]}.values():
        words = ": {question_template} {answer_template} ({reduction})".format_map(way) if "reduction" in way else ""
        yield f"Scored by {way['kind']}{words}."
    if judges := sorted({judge for part in results["parts"].values() for judge in part["judges"]}):
        yield f"Judged by {', '.join(judges)}."


def _examples(task: Task, main: str | None, out: Path) -> list[dict[str, Any]]:
    """A fixed random choice: of wrong answers, if the metric called ``main`` tells them from right ones."""
    if task.settings.kind != "answers":
        return []
    answers = [answer for part in task.parts() for answer in _answers(part, out)]
    random.Random(0).shuffle(answers)
    wrong = METRICS[main].wrong if main else None
    chosen = [line for line, row in answers if wrong is None or wrong(row)]
    return [
        {
            "pictures": [url for source in marked_pictures(line) if (url := thumbnail(source))],
            "question": line["prompt"].replace(IMAGE_MARKER, "").strip(),
            "said": line["answer"] or "(nothing)",
            "truth": "true: " + " / ".join(line["truths"][:MOST_TRUTHS]) if line["truths"] else "",
            "wrong": wrong is not None,
        }
        for line in chosen[:EXAMPLES]
    ]


def _answers(part: Part, out: Path) -> Iterator[tuple[dict[str, Any], Row]]:
    """The lines of answers that can be measured, with what is measured of them; of a part without true ones, all."""
    lines = {line["id"]: line for line in read_lines(files_of(part, out)) if "error" not in line}
    rows = read_rows(part, out)[0] or [to_row(line, str) for line in lines.values()]
    return ((lines[row.id], row) for row in rows)
