"""First losses of mBLIP's tiny recipes, as shipped but for their size: a change anywhere on the way shows here.

Run this file as a script to write them anew, after a change that is meant to change them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from twins import Twins

from sightbridge.data.mix.plan import plan_mix
from sightbridge.data.mix.settings import read_mix
from sightbridge.data.mix.write import write_mix
from sightbridge.data.scenes.write import ScenesSettings
from sightbridge.errors import SettingsError


def add_mixture(scenes: Path) -> None:
    write_mix(plan_mix(read_mix("scenes", [f"root={scenes}"])), scenes / "mblip_train.json")


FINETUNES = ("finetune-xgqa", "finetune-xvnli", "finetune-marvl")
SMALL_MIXTURE = ("data.train.0.skip=0", "data.train.0.limit=30", "data.validation.0.limit=4")
TWINS = Twins(
    "mblip",
    tuple(f"mblip-{name}" for name in ("warmup", "instruct-mt0", "instruct-bloomz", *FINETUNES)),
    changes=("training.batch_size=6", "optim.warmup_steps=2", *SMALL_MIXTURE),
    scenes=ScenesSettings(train=12, test=4, size=48),
    add_files=add_mixture,
)
NO_DROPOUT = "model.lora.dropout=0"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TWINS.draw(tmp_path_factory.mktemp("mblip"))


@pytest.mark.parametrize("recipe", TWINS.recipes)
def test_losses_are_those_of_before(recipe: str, scenes: Path, tmp_path: Path) -> None:
    TWINS.compare(recipe, scenes, tmp_path / "run")


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
        TWINS.run(
            "tiny/mblip-instruct-bloomz", scenes, tmp_path / side, source, f"data.padding_side={side}", NO_DROPOUT
        )
        for side in ("left", "right")
    ]
    difference = max(abs(left - right) for left, right in zip(*sides, strict=True))
    print(f"five steps, padded left and right: widest difference {difference:.1e}")
    assert difference < 1e-5


def test_an_encoder_decoder_is_padded_on_the_right(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="encoder-decoder is padded on the right") as caught:
        TWINS.run("tiny/mblip-instruct-mt0", scenes, tmp_path / "run", "data.padding_side=left")
    assert caught.value.key == "data.padding_side"
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    TWINS.write_anew()
