import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sightbridge.config.load import LoadedRecipe, read_recipe
from sightbridge.config.recipe import Recipe
from sightbridge.errors import DataError, SettingsError
from sightbridge.training.chain import StepResult, run_chain

QUIET = Console(quiet=True)
CHAIN = """
scenes: {train: 2, test: 1, size: 48}
every: {training: {steps: 2}}
chain:
  - {name: first, recipe: tiny/random}
  - {name: second, recipe: tiny/random, start: first, change: {training: {steps: 3}}}
"""


def read(folder: Path, text: str = CHAIN) -> LoadedRecipe:
    path = folder / "mine.yaml"
    path.write_text(text)
    return read_recipe(path)


class Runs:
    """Stands for the engine: remembers what it was to run, and says that losses fell from 2 to 1."""

    def __init__(self, fails: str | None = None) -> None:
        self.runs: list[tuple[Recipe, Path]] = []
        self.fails = fails

    def __call__(self, loaded: LoadedRecipe, folder: Path) -> list[dict[str, Any]]:
        assert isinstance(loaded.recipe, Recipe)
        if folder.name == self.fails:
            raise DataError("row 3 is wrong")
        self.runs.append((loaded.recipe, folder))
        steps = loaded.recipe.training.steps
        return [
            {"kind": "evaluation", "step": 0, "validation_loss": 2.0, "note": "x"},
            {"kind": "train", "step": steps, "loss": 0.5},
            {"kind": "evaluation", "step": steps, "validation_loss": 1.0},
        ]


def test_every_step_runs_with_its_settings_and_starts_where_it_should(tmp_path: Path):
    runs, folder = Runs(), tmp_path / "run"
    results = run_chain(read(tmp_path), folder, runs, QUIET)
    (first, first_folder), (second, second_folder) = runs.runs
    assert (first_folder, second_folder) == (folder / "first", folder / "second")
    assert (first.training.steps, second.training.steps) == (2, 3)
    assert first.training.init_from is None
    assert second.training.init_from == str(folder / "first" / "model")
    assert first.data.root == second.data.root == str(folder / "scenes")
    assert (folder / "scenes" / "captions_train.json").is_file()
    assert results[1] == StepResult("second", "tiny/random", 3, {"validation_loss": 2.0}, {"validation_loss": 1.0})
    written = json.loads((folder / "chain.json").read_text())
    assert [line["name"] for line in written] == ["first", "second"]


def test_mixtures_are_made_of_the_scenes(tmp_path: Path):
    text = CHAIN.replace("size: 48}", "size: 48}\nmixes: {asked.json: [scenes, parts.vqg=null, parts.matching=null]}")
    run_chain(read(tmp_path, text), tmp_path / "run", Runs(), QUIET)
    rows = json.loads((tmp_path / "run" / "scenes" / "asked.json").read_text())
    assert {row["language"] for row in rows} == {"en"} and len(rows) > 8
    assert all((tmp_path / "run" / "scenes" / row["image_id"]).is_file() for row in rows)


def test_a_mistake_in_a_mixture_is_found_before_the_first_run(tmp_path: Path):
    text = CHAIN.replace("size: 48}", "size: 48}\nmixes: {asked.json: [scenes, parts.vqg.limmit=1]}")
    with pytest.raises(SettingsError, match="limmit"):
        run_chain(read(tmp_path, text), tmp_path / "run", Runs(), QUIET)
    assert not (tmp_path / "run").exists()


def test_the_settings_written_down_are_a_chain_again(tmp_path: Path):
    loaded = read(tmp_path)
    run_chain(loaded, tmp_path / "run", Runs(), QUIET)
    assert read_recipe(tmp_path / "run" / "chain.yaml").recipe == loaded.recipe


def test_a_mistake_in_a_later_step_is_found_before_the_first_runs(tmp_path: Path):
    runs = Runs()
    loaded = read(tmp_path, CHAIN.replace("steps: 3", "stepz: 3"))
    with pytest.raises(SettingsError, match=r"step 'second' of the chain: .*stepz"):
        run_chain(loaded, tmp_path / "run", runs, QUIET)
    assert not runs.runs and not (tmp_path / "run").exists()


def test_a_chain_or_a_parent_is_no_step(tmp_path: Path):
    with pytest.raises(SettingsError, match="'tiny/parent-vision' is no recipe of a single run"):
        run_chain(read(tmp_path, "chain: [{name: a, recipe: tiny/parent-vision}]"), tmp_path / "run", Runs(), QUIET)


def test_what_goes_wrong_in_a_step_names_it_and_keeps_what_is_done(tmp_path: Path):
    with pytest.raises(DataError, match="step 'second' of the chain: row 3 is wrong"):
        run_chain(read(tmp_path), tmp_path / "run", Runs(fails="second"), QUIET)
    assert len(json.loads((tmp_path / "run" / "chain.json").read_text())) == 1
