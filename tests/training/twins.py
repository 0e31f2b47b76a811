"""Tiny recipes as shipped but for their size: run for five steps, their losses compared with those of before.

A test file that says which recipes writes their losses anew when run as a script, after a change that is meant to
change them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sightbridge.config.load import read_recipe
from sightbridge.data.scenes.write import ScenesSettings, write_scenes
from sightbridge.training.run import run_recipe

LOSSES = Path(__file__).parents[1] / "golden" / "losses"
ENGLISH = ScenesSettings(train=24, test=4, size=48, languages=("en",))
SHORT = ("training.steps=5", "training.log_every=1", "optim.eps=1e-4")
"""``eps``: else rounding moves weights whose gradient is all but zero."""


@dataclass(frozen=True)
class Twins:
    """The tiny recipes of one system, the changes that make a test's size of them, and the scenes they train on.

    ``add_files`` writes what is needed beside the scenes. The losses of before are in ``golden/losses/<system>_tiny``.
    """

    system: str
    names: tuple[str, ...]
    changes: tuple[str, ...] = ("training.batch_size=6",)
    scenes: ScenesSettings = ENGLISH
    add_files: Callable[[Path], object] = lambda scenes: None

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of the recipes."""
        return tuple(f"tiny/{name}" for name in self.names)

    @property
    def file(self) -> Path:
        """Where the losses of before are."""
        return LOSSES / f"{self.system}_tiny.json"

    def draw(self, folder: Path) -> Path:
        """Write the scenes; returns their folder."""
        scenes = folder / "scenes"
        write_scenes(scenes, self.scenes)
        self.add_files(scenes)
        return scenes

    def run(self, recipe: str, scenes: Path, out: Path, *changes: str, resume: bool = False) -> list[float]:
        """Losses of every step of a run."""
        loaded = read_recipe(recipe, [f"data.root={scenes}", *SHORT, *self.changes, *changes])
        history = run_recipe(loaded, out, console=Console(quiet=True), resume=resume)
        return [line["loss"] for line in history if line["kind"] == "train"]

    def compare(self, recipe: str, scenes: Path, out: Path) -> None:
        """A change anywhere on the way from files to weights shows here."""
        now, before = self.run(recipe, scenes, out), json.loads(self.file.read_text())[recipe]
        difference = max(abs(a - b) for a, b in zip(now, before, strict=True))
        print(f"losses of five steps, {recipe}: widest difference {difference:.1e}")
        assert difference < 1e-4
        assert min(now[1:]) < now[0]

    def write_anew(self) -> None:
        """Make today's losses those of before."""
        with tempfile.TemporaryDirectory() as place:
            drawn = self.draw(Path(place))
            found = {name: self.run(name, drawn, Path(place) / name) for name in self.recipes}
        self.file.write_text(json.dumps(found, indent=1) + "\n")
        sys.stdout.write(self.file.read_text())
