"""``sightbridge rescore``: measure stored answers again; and how results are shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightbridge.cli.console import console, new_table, show_table

if TYPE_CHECKING:
    from rich.table import Table


def rescore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="That 'evaluate' wrote.", show_default=False)],
) -> None:
    """Measure the answers of an evaluation again, without the model.

    \b
    Examples:
      sightbridge rescore runs/mine/evaluation
    """
    show_results(folder, [])


def show_results(folder: Path, tasks: list[str]) -> None:
    """Measure, write results and report, print a table; leave with status 1 if answers are missing."""
    from sightbridge.evaluation.report import write_report
    from sightbridge.evaluation.results import read_settings, score

    results = score(folder)
    report = write_report(folder, results, read_settings(folder))
    terminal = console()
    for name, task in results["tasks"].items():
        if not tasks or name in tasks:
            title = f"{name}: {task['description']} (version {task['version']})"
            terminal.print(title, style="bold", markup=False, soft_wrap=True)
            show_table(_table(task))
    for name, why in results["left_out"].items():
        terminal.print(f"{name} was left out: {why}", markup=False, soft_wrap=True)
    terminal.print(f"results: {folder / 'results.json'}  report: {report}", markup=False, soft_wrap=True)
    failed = sum(part["errors"] for task in results["tasks"].values() for part in task["parts"].values())
    if failed:
        console(stderr=True).print(f"{failed} records have no answer; their lines in {folder / 'predictions'} say why.")
        raise typer.Exit(1)


def _table(task: dict[str, Any]) -> Table:
    from sightbridge.evaluation.results import show

    measured = list(dict.fromkeys(value for part in task["parts"].values() for value in part["values"]))
    table = new_table("part", "records", *(value.split("/")[-1] for value in measured))
    for column in table.columns[1:]:
        column.justify = "right"
    for part, own in task["parts"].items():
        table.add_row(part, f"{own['records']:,}", *(_cell(value, own["values"].get(value)) for value in measured))
        for kind, group in own["types"].items():
            cells = (_cell(value, group["values"].get(value)) for value in measured)
            table.add_row(f"  {kind}", f"{group['records']:,}", *cells, style="dim")
    if task["mean"]:
        table.add_row("mean", "", *(show(value, task["mean"][value]) for value in measured), style="bold")
    return table


def _cell(name: str, value: dict[str, float | None] | None) -> str:
    from sightbridge.evaluation.results import show

    if value is None or value["value"] is None:
        return "-"
    if value["low"] is None or value["high"] is None:
        return show(name, value["value"])
    return f"{show(name, value['value'])} ±{show(name, (value['high'] - value['low']) / 2)}"
