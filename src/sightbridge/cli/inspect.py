"""``sightbridge inspect``: look into recipes, data files and model folders."""

from __future__ import annotations

import os
from typing import Any

import typer
from rich.padding import Padding
from rich.text import Text

from sightbridge.cli.arguments import OverridesArgument, RecipeArgument
from sightbridge.cli.console import wide_console
from sightbridge.cli.inspect_data import inspect_data
from sightbridge.cli.inspect_model import inspect_model

app = typer.Typer(no_args_is_help=True, help="Look into a recipe, a data file or a model folder.")
app.command("data")(inspect_data)
app.command("model")(inspect_model)


@app.command("recipe")
def inspect_recipe(name: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Show every setting of a recipe: its value, where it was given, and what it means.

    Each is shown as it would be changed: key=value.

    \b
    Examples:
      sightbridge inspect recipe tiny/random
      sightbridge inspect recipe tiny/random optim.lr=1e-4 data.root=/data
      sightbridge inspect recipe my_recipe.yaml
    """
    from sightbridge.config.load import describe, read_recipe

    loaded = read_recipe(name, overrides or [])
    out = wide_console()
    out.print(Text(loaded.recipe.description), Text(f"Needs: {loaded.recipe.hardware}"), sep="\n", end="\n\n")
    for setting in describe(loaded.recipe):
        if setting.key in ("description", "hardware"):
            continue
        given = loaded.given(setting.key)
        line = Text(f"{setting.key}={_show(setting.value)}", style="bold" if given else "")
        out.print(line.append(f"   {_short(given) if given else 'default'}", style="cyan" if given else "dim"))
        if setting.meaning:
            out.print(Padding(Text(setting.meaning, style="dim"), (0, 0, 0, 4), expand=False))


def _short(where: str) -> str:
    """A shipped recipe's file by its name: ``tiny/random.yaml:9``."""
    from sightbridge.config.catalogue import RECIPES

    return where.removeprefix(f"{RECIPES}{os.sep}")


def _show(value: Any) -> str:
    """A value as one would write it in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_show, value))}]"
    return str(value)
