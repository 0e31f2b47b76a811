"""First losses of BLIP-2's tiny recipes, as shipped but for their size: a change anywhere on the way shows here.

Run this file as a script to write them anew, after a change that is meant to change them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from twins import Twins

from sightbridge.data.scenes.write import ScenesSettings

TWINS = Twins(
    "blip2",
    ("blip2-stage2", "blip2-stage2-t5", "blip2-caption", "blip2-vqa"),
    changes=("training.batch_size=6", "optim.warmup_steps=2"),
    scenes=ScenesSettings(train=12, test=4, size=48, languages=("en",)),
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TWINS.draw(tmp_path_factory.mktemp("blip2"))


@pytest.mark.parametrize("recipe", TWINS.recipes)
def test_losses_are_those_of_before(recipe: str, scenes: Path, tmp_path: Path) -> None:
    TWINS.compare(recipe, scenes, tmp_path / "run")


if __name__ == "__main__":
    TWINS.write_anew()
