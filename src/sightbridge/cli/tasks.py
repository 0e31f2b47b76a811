"""``sightbridge tasks``: the benchmarks there are, and what each of them needs."""

from __future__ import annotations

from typing import Annotated

import typer

from sightbridge.cli.arguments import complete_task
from sightbridge.cli.console import console, new_table, show_table


def tasks(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="[TASK]",
            help="Say everything about this one.",
            autocompletion=complete_task,
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the benchmarks, or say which files one needs, what it asks and how it measures.

    \b
    Examples:
      sightbridge tasks
      sightbridge tasks xgqa
    """
    from rich.table import Table

    from sightbridge.evaluation.task import load_task, task_names

    if task is None:
        table = new_table("task", "what", "parts", "metrics")
        for name in task_names():
            settings = load_task(name).settings
            table.add_row(name, settings.description, str(len(settings.parts) or ""), ", ".join(settings.metrics))
        show_table(table)
        return
    loaded = load_task(task)
    settings = loaded.settings
    lines = [("measures", settings.description), ("get", settings.get), ("annotations", f"DATA/{settings.path}")]
    lines += [("pictures", f"DATA/{settings.images}"), ("parts", " ".join(settings.parts) or "-")]
    lines += [("prompt", settings.prompt or "the words of the record, in the model's template")]
    lines += [("generation", settings.generation.model_dump(mode="json", exclude_defaults=True) or "greedy")]
    lines += [("metrics", ", ".join(settings.metrics)), ("version", settings.version)]
    grid = Table.grid(padding=(0, 2))
    for key, value in lines:
        grid.add_row(key, str(value))
    console().print(grid, markup=False)
