"""A chain of runs, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from sightbridge.config.chain import ChainRecipe, ChainStep, as_overrides
from sightbridge.config.load import LoadedRecipe, read_recipe, save_resolved, write_atomically
from sightbridge.config.recipe import RunRecipe
from sightbridge.data.mix.plan import plan_mix
from sightbridge.data.mix.settings import MixSettings, read_mix
from sightbridge.data.mix.write import write_mix
from sightbridge.data.scenes.write import ScenesSettings, write_scenes
from sightbridge.errors import SettingsError, SightbridgeError
from sightbridge.training.run_folder import MODEL

SCENES = "scenes"
CHAIN_SETTINGS, CHAIN_RESULTS = "chain.yaml", "chain.json"

RunStep = Callable[[LoadedRecipe, Path], list[dict[str, Any]]]
"""Trains one recipe in a folder and returns the lines of its log."""


@dataclass(frozen=True)
class StepResult:
    """What a run's evaluations measured: the first one, at step 0 if the recipe evaluates there, and the last one."""

    name: str
    recipe: str
    steps: int
    before: dict[str, float]
    after: dict[str, float]


def run_chain(loaded: LoadedRecipe, folder: Path, run_step: RunStep, console: Console) -> list[StepResult]:
    """Run every step in a folder of its own inside ``folder``; write ``chain.json``, and return what was measured.

    All recipes, mixtures and their settings are read before the first run begins. A step with a ``start`` begins with
    the weights of that step's model.

    Raises ``SightbridgeError``, naming the step, for whatever its recipe or its run complains about.
    """
    chain = loaded.recipe
    assert isinstance(chain, ChainRecipe), "only the recipe of a chain has steps"
    recipes = [_read_step(chain, step, folder) for step in chain.chain]
    mixes = {file: _read_mixture(mixture, folder) for file, mixture in chain.mixes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_resolved(chain, folder / CHAIN_SETTINGS)
    if chain.scenes and not (folder / SCENES).exists():
        options = chain.scenes.model_dump()
        options["languages"] = tuple(options["languages"])
        write_scenes(folder / SCENES, ScenesSettings(**options))
    for file, mixture in mixes.items():
        if not (folder / SCENES / file).exists():
            write_mix(plan_mix(mixture), folder / SCENES / file)

    results: list[StepResult] = []
    for number, (step, recipe) in enumerate(zip(chain.chain, recipes, strict=True), start=1):
        console.print(f"[bold]{number}/{len(recipes)} {step.name}[/bold] ({step.recipe})")
        try:
            history = run_step(recipe, folder / step.name)
        except SightbridgeError as error:
            raise type(error)(f"step '{step.name}' of the chain: {error}") from error
        results.append(summarise(step, history))
        write_atomically(folder / CHAIN_RESULTS, json.dumps([asdict(result) for result in results], indent=2) + "\n")
    return results


def summarise(step: ChainStep, history: Sequence[dict[str, Any]]) -> StepResult:
    """The first and the last evaluation in a log."""
    evaluations = [line for line in history if line["kind"] == "evaluation"]
    first, last = (evaluations[0], evaluations[-1]) if evaluations else ({}, {})
    return StepResult(step.name, step.recipe, history[-1]["step"], _measures(first), _measures(last))


def _measures(line: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in line.items() if key not in ("kind", "step") and isinstance(value, float)}


def _read_mixture(mixture: Sequence[str], folder: Path) -> MixSettings:
    """A mixture of the chain's own scenes."""
    name, *overrides = mixture
    return read_mix(name, [*overrides, f"root={json.dumps(str(folder / SCENES))}"])


def _read_step(chain: ChainRecipe, step: ChainStep, folder: Path) -> LoadedRecipe:
    overrides = [*as_overrides(chain.every), *as_overrides(step.change)]
    if chain.scenes:
        overrides.append(f"data.root={json.dumps(str(folder / SCENES))}")
    if step.starts:
        folders = [str(folder / start / MODEL) for start in step.starts]
        overrides.append(f"training.init_from={json.dumps(folders if len(folders) > 1 else folders[0])}")
    try:
        loaded = read_recipe(step.recipe, overrides)
    except SettingsError as error:
        raise SettingsError(f"step '{step.name}' of the chain: {error}", error.key) from error
    if not isinstance(loaded.recipe, RunRecipe):
        raise SettingsError(f"step '{step.name}' of the chain: '{step.recipe}' is no recipe of a single run of a model")
    return loaded
