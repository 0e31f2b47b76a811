"""First losses of mBLIP's tiny recipes, as shipped but for their size: a change anywhere on the way shows here.

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
from sightbridge.data.mix.plan import plan_mix
from sightbridge.data.mix.settings import read_mix
from sightbridge.data.mix.write import write_mix
from sightbridge.data.scenes.write import ScenesSettings, write_scenes
from sightbridge.errors import SettingsError
from sightbridge.training.run import run_recipe

LOSSES = Path(__file__).parents[1] / "golden" / "losses" / "mblip_tiny.json"
RECIPES = (
    "tiny/mblip-warmup",
    "tiny/mblip-instruct-mt0",
    "tiny/mblip-instruct-bloomz",
    "tiny/mblip-finetune-xgqa",
    "tiny/mblip-finetune-xvnli",
    "tiny/mblip-finetune-marvl",
)
SHORT = ("training.steps=5", "training.batch_size=6", "training.log_every=1", "optim.warmup_steps=2", "optim.eps=1e-4")
"""``eps``: else rounding moves weights whose gradient is all but zero."""
NO_DROPOUT = "model.lora.dropout=0"
MIXED = ("data.train.0.skip=0", "data.train.0.limit=30", "data.validation.0.limit=4")


def draw(folder: Path) -> Path:
    scenes = folder / "scenes"
    write_scenes(scenes, ScenesSettings(train=12, test=4, size=48))
    write_mix(plan_mix(read_mix("scenes", [f"root={scenes}"])), scenes / "mblip_train.json")
    return scenes


def losses(recipe: str, scenes: Path, out: Path, *changes: str) -> list[float]:
    loaded = read_recipe(recipe, [f"data.root={scenes}", *SHORT, *MIXED, *changes])
    history = run_recipe(loaded, out, console=Console(quiet=True))
    return [line["loss"] for line in history if line["kind"] == "train"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("mblip"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_are_those_of_before(recipe: str, scenes: Path, tmp_path: Path) -> None:
    now, before = losses(recipe, scenes, tmp_path / "run"), json.loads(LOSSES.read_text())[recipe]
    difference = max(abs(a - b) for a, b in zip(now, before, strict=True))
    print(f"losses of five steps, {recipe}: widest difference {difference:.1e}")
    assert difference < 1e-4
    assert now[-1] < now[0]


def test_a_decoder_learns_the_same_from_rows_padded_on_either_side(scenes: Path, tmp_path: Path) -> None:
    """Whole steps with two pictures, one and none in a batch: losses and so all the weights behind them agree."""
    rows = json.loads((scenes / "pairs_train.json").read_text())[:3]
    rows += [
        {"context": "Is there a star?", "label": "yes", "image_id": rows[0]["left_image"]},
        {"context": "True or false: one is a number.", "label": "true"},
    ]
    turns = [[{"from": "human", "value": row["context"]}, {"from": "gpt", "value": row["label"]}] for row in rows]
    images = [[row[key] for key in ("image_id", "left_image", "right_image") if key in row] for row in rows]
    for told, pictures in zip(turns, images, strict=True):
        told[0]["value"] = "<image>\n" * len(pictures) + told[0]["value"]
    mixed = scenes / "mixed.json"
    mixed.write_text(json.dumps([{"conversations": t, "image": i} for t, i in zip(turns, images, strict=True)]))
    source = f"data.train=[{{format: llava, path: {mixed.name}, images: .}}]"
    sides = [
        losses("tiny/mblip-instruct-bloomz", scenes, tmp_path / side, source, f"data.padding_side={side}", NO_DROPOUT)
        for side in ("left", "right")
    ]
    difference = max(abs(left - right) for left, right in zip(*sides, strict=True))
    print(f"five steps, padded left and right: widest difference {difference:.1e}")
    assert difference < 1e-5


def test_an_encoder_decoder_is_padded_on_the_right(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="encoder-decoder is padded on the right") as caught:
        losses("tiny/mblip-instruct-mt0", scenes, tmp_path / "run", "data.padding_side=left")
    assert caught.value.key == "data.padding_side"
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        drawn = draw(Path(place))
        found = {name: losses(name, drawn, Path(place) / name) for name in RECIPES}
    LOSSES.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(LOSSES.read_text())
