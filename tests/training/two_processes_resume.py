"""Run recipes as one of two processes, whole and killed in between; started by ``test_distributed_resume``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import PartialState
from rich.console import Console

from sightbridge.config.load import load_recipe, read_recipe
from sightbridge.training import report
from sightbridge.training.run import run_recipe


def run_twice(folder: Path, recipe: str, overrides: list[str]) -> None:
    """Into ``folder``/straight without a stop, into ``folder``/killed with one behind the last checkpoint but one."""
    loaded = read_recipe(recipe, overrides)
    run_recipe(loaded, folder / "straight", console=Console(quiet=True))
    if PartialState().is_main_process:
        shutil.copytree(folder / "straight", folder / "killed")
        newest = sorted((folder / "killed" / "checkpoints").iterdir())[-1]
        assert (
            json.loads((newest / "state.json").read_text())["progress"]["step"]
            == load_recipe(recipe, overrides).training.steps
        )
        shutil.rmtree(newest)
    PartialState().wait_for_everyone()
    run_recipe(loaded, folder / "killed", resume=True, console=Console(quiet=True))


def run_all(folder: Path, recipes: Mapping[str, Sequence[str]]) -> None:
    """Run recipes, each with its overrides, into folders of these names, as one of two processes."""
    report.draw_panels = lambda panels: b""  # which would take longer than all the rest
    for name, (recipe, *overrides) in recipes.items():
        run_twice(folder / name, recipe, overrides)
