"""``sightbridge recipes``: what can be trained."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sightbridge.cli.console import new_table, show_table
from sightbridge.errors import SettingsError


def recipes(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORD",
            help="Show only recipes with all these words in their name, description or hardware.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipe files instead, for your editor.")
    ] = False,
    launcher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Print where the file for 'accelerate launch' is: ddp, fsdp2, zero2, zero3, zero3-offload.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the recipes that ship with sightbridge.

    \b
    Examples:
      sightbridge recipes
      sightbridge recipes tiny cpu
      sightbridge recipes --schema > recipe.schema.json
      accelerate launch --config_file $(sightbridge recipes --launcher fsdp2) -m sightbridge train RECIPE
    """
    from sightbridge.config.catalogue import find_launcher
    from sightbridge.config.load import KINDS, read_recipe, recipe_names, recipe_schema
    from sightbridge.config.recipe import Recipe

    if launcher:
        typer.echo(str(find_launcher(launcher)))
        return
    if schema:
        typer.echo(json.dumps(recipe_schema([Recipe, *(kind for kind, _ in KINDS.values())]), indent=2))
        return
    table = new_table("recipe", "description", "hardware")
    for name in recipe_names():
        recipe = read_recipe(name).recipe
        row = (name, recipe.description, recipe.hardware)
        if all(word.lower() in " ".join(row).lower() for word in words or []):
            table.add_row(*row)
    if not table.row_count:
        raise SettingsError(f"no recipe matches '{' '.join(words or [])}'; 'sightbridge recipes' lists all")
    show_table(table)
