"""CLIP-FlanT5's tiny recipes: their first losses, as shipped but for their size, and what split captions teach.

Run this file as a script to write the losses anew, after a change that is meant to change them.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from accelerate import Accelerator
from twins import Twins

from sightbridge.batch import IGNORE_INDEX, Batch
from sightbridge.checkpoints.folder import load_model
from sightbridge.config.load import read_recipe
from sightbridge.config.recipe import Recipe
from sightbridge.training.preflight import Checked, check_run
from sightbridge.training.run_data import RunData

TWINS = Twins(
    "clip_flant5",
    tuple(f"clip-flant5-{name}" for name in ("pretrain", "pretrain-no-split-text", "finetune")),
    changes=(
        "training.batch_size=24",
        "optim.warmup_ratio=0.8",  # so that five steps of a language model lead downwards
        "evaluation.metrics=[]",
    ),
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TWINS.draw(tmp_path_factory.mktemp("clip_flant5"))


@pytest.mark.parametrize("recipe", TWINS.recipes)
def test_losses_are_those_of_before(recipe: str, scenes: Path, tmp_path: Path) -> None:
    TWINS.compare(recipe, scenes, tmp_path / "run")


def test_the_second_stage_starts_from_the_first_and_trains_all_of_t5(scenes: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    TWINS.run("tiny/clip-flant5-pretrain", scenes, first, "training.steps=2")
    assert not (first / "model" / "language_model.safetensors").exists(), "frozen: only its source is named"
    start = f"training.init_from={first / 'model'}"
    started = TWINS.run("tiny/clip-flant5-finetune", scenes, second, start, "training.steps=2")
    afresh = TWINS.run("tiny/clip-flant5-finetune", scenes, tmp_path / "afresh", "training.steps=1")
    assert started[0] != afresh[0]
    before, after = (dict(load_model(folder / "model")[0].named_parameters()) for folder in (first, second))
    same = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert same == {name for name in before if name.startswith("vision_tower.")}


def epochs_of_batches(scenes: Path, out: Path, *changes: str) -> tuple[Checked, list[list[Batch]]]:
    """Batches of three epochs in the form that the recipe's run is trained on, an epoch a list."""
    loaded = read_recipe("tiny/clip-flant5-pretrain", [f"data.root={scenes}", "training.batch_size=6", *changes])
    checked = check_run(loaded)
    assert isinstance(loaded.recipe, Recipe)
    data = RunData(loaded.recipe, checked, out, Accelerator(cpu=True), None)
    batches = data.training_batches()
    return checked, [cast(list[Batch], list(batches.epoch(number))) for number in range(3)]


def captions(checked: Checked, batch: Batch) -> dict[str, tuple[str, str]]:
    """By record: what the encoder is given of the caption, and what the decoder must write."""
    tokenizer, found = checked.processor.tokenizer, {}
    assert batch.labels is not None
    for row, name in enumerate(batch.ids):
        given = batch.input_ids[row][batch.attention_mask[row].bool() & ~batch.image_slots[row]]
        wanted = batch.labels[row][batch.labels[row] != IGNORE_INDEX]
        assert wanted[-1] == tokenizer.eos_token_id
        found[name] = tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in (given, wanted))
    return found


def test_split_captions_are_whole_and_cut_anew_every_epoch(scenes: Path, tmp_path: Path) -> None:
    checked, epochs = epochs_of_batches(scenes, tmp_path)
    spoken = {record.id: record.turns[-1].text or "" for record in checked.train}
    cuts: dict[str, list[int]] = {name: [] for name in spoken}
    for batches in epochs:
        seen = {name: texts for batch in batches for name, texts in captions(checked, batch).items()}
        assert seen.keys() == spoken.keys(), "an epoch has every caption once"
        for name, (given, wanted) in seen.items():
            assert given + wanted == spoken[name], "what is given and what is wanted is the caption, without the prompt"
            assert 1 <= len(given) <= len(spoken[name]) // 2
            cuts[name].append(len(given))
    assert sum(len(set(lengths)) > 1 for lengths in cuts.values()) > len(cuts) * 0.8
    assert len({length for lengths in cuts.values() for length in lengths}) > 12


def test_targets_of_split_captions_are_counted(scenes: Path, tmp_path: Path) -> None:
    """What a step's loss is divided by is what the decoder was asked for, which changes with every cut."""
    checked, epochs = epochs_of_batches(scenes, tmp_path)
    counts = [sum(batch.n_target_tokens for batch in batches) for batches in epochs]
    assert len(set(counts)) == 3
    for batches, counted in zip(epochs, counts, strict=True):
        assert counted == sum(
            int((batch.labels != IGNORE_INDEX).sum()) for batch in batches if batch.labels is not None
        )
    whole = sum(
        batch.n_target_tokens for batch in epochs_of_batches(scenes, tmp_path, "model.prompt.template=t5_plain")[1][0]
    )
    assert 0.5 * whole < counts[0] < 0.95 * whole
    assert len(checked.train) == 24


def test_split_captions_are_the_same_for_the_same_seed_alone(scenes: Path, tmp_path: Path) -> None:
    def rows(*changes: str) -> dict[str, tuple[str, str]]:
        checked, epochs = epochs_of_batches(scenes, tmp_path, *changes)
        return {name: texts for batch in epochs[0] for name, texts in captions(checked, batch).items()}

    first = rows()
    assert rows() == first
    assert rows("data.workers=2") == first
    assert rows("training.seed=7") != first


if __name__ == "__main__":
    TWINS.write_anew()
