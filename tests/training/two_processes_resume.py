"""Run recipes as one of two processes, whole and killed in between; started by ``test_distributed_resume``.

Usage: two_processes_resume.py FOLDER RECIPES, the latter JSON: folder inside -> recipe and overrides.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from rich.console import Console

from sightbridge.config.load import load_recipe, read_recipe
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, (recipe, *overrides) in json.loads(sys.argv[2]).items():
        run_twice(Path(sys.argv[1]) / name, recipe, overrides)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
