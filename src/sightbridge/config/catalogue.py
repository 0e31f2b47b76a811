"""What is shipped in the package, by name: recipes, and configuration files of launchers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sightbridge.errors import SettingsError, nearest

RECIPES = Path(__file__).parent.parent / "recipes"
"""Folder of the shipped recipes; ``tiny/random.yaml`` in it has the name ``tiny/random``."""
LAUNCHERS = Path(__file__).parent.parent / "launch"
"""Folder of the shipped configuration files for ``accelerate launch``."""


@cache
def recipe_names() -> tuple[str, ...]:
    """Names of all shipped recipes, sorted."""
    return tuple(sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml")))


def find_recipe(name: str, beside: Path | None = None) -> Path:
    """File of a shipped recipe or a path; relative paths start from the folder ``beside`` if one is given.

    Raises:
        SettingsError: there is no such recipe or file; the message names the nearest recipe.
    """
    names = recipe_names()
    if name in names:
        return RECIPES / f"{name}.yaml"
    path = (beside or Path()) / Path(name).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml", ".json"):
        raise SettingsError(f"recipe file '{path}' does not exist")
    raise SettingsError(
        f"unknown recipe '{name}'.{nearest(name, list(names))} 'sightbridge recipes' lists them; "
        "a file of your own ends in .yaml"
    )


def find_launcher(name: str) -> Path:
    """File of a shipped configuration for ``accelerate launch``.

    Raises:
        SettingsError: there is none of that name.
    """
    names = sorted(path.stem for path in LAUNCHERS.glob("*.yaml"))
    if name not in names:
        raise SettingsError(f"unknown launcher '{name}'; there are {', '.join(names)}.{nearest(name, names)}")
    return LAUNCHERS / f"{name}.yaml"
