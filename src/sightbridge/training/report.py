"""The page of a run: its curves, some of its answers, its settings, and how to run it again.

It is made from the files in the run's folder alone, so it can be made of a run that was stopped, or of one that still
goes on. It loads nothing from anywhere else.
"""

from __future__ import annotations

import base64
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightbridge.config.evaluation import UNMARKED
from sightbridge.config.load import write_atomically
from sightbridge.errors import DataError
from sightbridge.pages import render, thumbnail
from sightbridge.training.charts import draw_panels, run_panels
from sightbridge.training.run_folder import ENVIRONMENT, SETTINGS
from sightbridge.training.samples import SAMPLES

REPORT, CURVES = "report.html", "curves.png"


def write_run_report(folder: Path) -> Path:
    """Write ``report.html`` and ``curves.png`` into a run's folder; returns the page's path.

    Raises ``DataError`` if the folder holds no log to draw.
    """
    history = read_lines(folder / "log.jsonl")
    panels = run_panels(history)
    if not panels:
        raise DataError(f"{folder / 'log.jsonl'}: has no logged step yet, so there is nothing to draw.")
    curves = draw_panels(panels)
    (folder / CURVES).write_bytes(curves)
    settings = (folder / SETTINGS).read_text(encoding="utf-8")
    environment = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    page = render(
        "sightbridge.training",
        "report.html.jinja",
        name=folder.name,
        figures=_figures(history),
        tables=tables_of_parts(history),
        curves=base64.b64encode(curves).decode(),
        samples=[_sample(line) for line in read_lines(folder / SAMPLES)],
        settings=settings,
        environment={key: value for key, value in environment.items() if key != "command"},
        first_command=shlex.join(environment.get("command", [])),
        again=f"sightbridge train {shlex.quote(str(folder / SETTINGS))} --out {shlex.quote(f'{folder}-again')}",
        bad_samples=len(read_lines(folder / "bad_samples.jsonl")),
    )
    write_atomically(folder / REPORT, page)
    return folder / REPORT


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; an absent one has none, and a last line that is still being written is left out."""
    if not path.is_file():
        return []
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole if line.strip()]


def _figures(history: list[dict[str, Any]]) -> dict[str, str]:
    """The numbers at the head of the page: where the run ended."""
    trained = [line for line in history if line["kind"] == "train"]
    evaluated = [line for line in history if line["kind"] == "evaluation"]
    figures = {"optimiser steps": f"{trained[-1]['step']:,}", "training loss": f"{trained[-1]['loss']:.4f}"}
    if evaluated:
        values = {key: value for key, value in evaluated[-1].items() if isinstance(value, float)}
        shares = {part for measures in _parts(evaluated[-1]).values() for part in measures}
        figures |= {key.replace("_", " "): f"{value:.4f}" for key, value in values.items() if key not in shares}
    figures["samples per second"] = f"{trained[-1]['samples_per_second']:,.1f}"
    figures["gigabytes of memory"] = f"{trained[-1]['memory_gb']:.2f}"
    return figures


@dataclass(frozen=True)
class Table:
    """Rows of a name and texts, one for each of ``columns``."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def tables_of_parts(history: list[dict[str, Any]]) -> list[Table]:
    """What the evaluations measured by language, or by shape of mark: a row for each, first and last evaluation.

    Measures of the same parts share a table; one that was also taken without marks (``unmarked_accuracy``) stands
    beside it, with what the marks were worth.
    """
    evaluated = [line for line in history if line["kind"] == "evaluation"]
    if not evaluated:
        return []
    first, last = evaluated[0], evaluated[-1]
    by_parts: dict[tuple[str, ...], list[str]] = {}
    for measure, keys in _parts(last).items():
        by_parts.setdefault(tuple(key.removeprefix(f"{measure}/") for key in keys), []).append(measure)
    lines = [first, last] if len(evaluated) > 1 else [last]
    return [_table(parts, measures, lines) for parts, measures in by_parts.items()]


def _table(parts: tuple[str, ...], measures: list[str], lines: list[dict[str, Any]]) -> Table:
    keys = {"all": "", **{part: f"/{part}" for part in parts}}
    columns: dict[str, list[str]] = {}
    for measure in measures:
        for line in lines:
            name = measure.replace("_", " ") + (f", step {line['step']:,}" if len(lines) > 1 else "")
            columns[name] = [_written(line.get(f"{measure}{key}")) for key in keys.values()]
        if (marked := measure.removeprefix(UNMARKED)) != measure and marked in measures:
            last = lines[-1]
            gains = [last[f"{marked}{key}"] - last[f"{measure}{key}"] for key in keys.values()]
            columns[f"{marked.replace('_', ' ')}, difference"] = [f"{gain:+.3f}" for gain in gains]
    return Table(tuple(columns), tuple(zip(keys, zip(*columns.values(), strict=True), strict=True)))


def _written(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _parts(line: dict[str, Any]) -> dict[str, list[str]]:
    """By measure that an evaluation has as a whole and in parts (``accuracy``), the keys of its parts."""
    measures = [key for key in line if "/" not in key]
    parts = {measure: [key for key in line if key.startswith(f"{measure}/")] for measure in measures}
    return {measure: keys for measure, keys in parts.items() if keys and not measure.startswith("validation_loss")}


def _sample(line: dict[str, Any]) -> dict[str, Any]:
    """A sample with its pictures made small; one that is not there any more is left out."""
    return line | {"pictures": [url for source in line["images"] if (url := thumbnail(source))]}
