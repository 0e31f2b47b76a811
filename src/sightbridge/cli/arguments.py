"""Arguments that several verbs share, with their tab completion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightbridge.errors import SettingsError


def complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes that begin with what was typed."""
    from sightbridge.config.catalogue import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def complete_override(incomplete: str) -> list[str]:
    """Dotted keys of settings that begin with what was typed, ready for a value."""
    from sightbridge.config.describe import known_keys

    return [f"{key}=" for key in known_keys() if key.startswith(incomplete)]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Name of a shipped recipe ('sightbridge recipes' lists them) or a YAML file.",
        autocompletion=complete_recipe,
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings to change, such as optim.lr=1e-4 or data.root=/data.",
        autocompletion=complete_override,
        show_default=False,
    ),
]
ModelArgument = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A model folder, such as runs/quickstart/model."),
]
SourceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="PART=FOLDER",
        help="Where a part lies that the model only references, if not where it was trained. Can be repeated.",
        show_default=False,
    ),
]


def read_part_sources(given: list[str] | None) -> dict[str, str]:
    """``vision_tower=FOLDER`` of each ``--source``; raises ``SettingsError`` for anything else."""
    sources = {}
    for text in given or []:
        part, equals, folder = text.partition("=")
        if not (part and equals and folder):
            raise SettingsError(f"--source: expected PART=FOLDER, such as vision_tower=/models/clip, got '{text}'")
        sources[part] = folder
    return sources
