"""First losses of BLIP-2's tiny recipes, as shipped but for their size: a change anywhere on the way shows here.

Run this file as a script to write them anew, after a change that is meant to change them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from sightbridge.config.load import read_recipe
from sightbridge.data.scenes.write import ScenesSettings, write_scenes
from sightbridge.training.run import run_recipe

LOSSES = Path(__file__).parents[1] / "golden" / "losses" / "blip2_tiny.json"
RECIPES = ("tiny/blip2-stage2", "tiny/blip2-stage2-t5", "tiny/blip2-caption", "tiny/blip2-vqa")
SHORT = ("training.steps=5", "training.batch_size=6", "training.log_every=1", "optim.warmup_steps=2", "optim.eps=1e-4")
"""``eps``: else rounding moves weights whose gradient is all but zero."""


def draw(folder: Path) -> Path:
    write_scenes(folder / "scenes", ScenesSettings(train=12, test=4, size=48, languages=("en",)))
    return folder / "scenes"


def losses(recipe: str, scenes: Path, out: Path) -> list[float]:
    loaded = read_recipe(recipe, [f"data.root={scenes}", *SHORT])
    history = run_recipe(loaded, out, console=Console(quiet=True))
    return [line["loss"] for line in history if line["kind"] == "train"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("blip2"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_are_those_of_before(recipe: str, scenes: Path, tmp_path: Path) -> None:
    now, before = losses(recipe, scenes, tmp_path / "run"), json.loads(LOSSES.read_text())[recipe]
    difference = max(abs(a - b) for a, b in zip(now, before, strict=True))
    print(f"losses of five steps, {recipe}: widest difference {difference:.1e}")
    assert difference < 1e-4
    assert now[-1] < now[0]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        drawn = draw(Path(place))
        found = {name: losses(name, drawn, Path(place) / name) for name in RECIPES}
    LOSSES.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(LOSSES.read_text())
