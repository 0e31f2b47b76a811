from pathlib import Path

import pytest

from sightbridge.config.chain import ChainRecipe, as_overrides
from sightbridge.config.load import load_recipe, read_recipe
from sightbridge.errors import SettingsError

CHAIN = """
every: {data: {workers: 2}}
chain:
  - {name: first, recipe: tiny/random}
  - {name: second, recipe: tiny/random, start: first, change: {training: {steps: 3}}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "chain.yaml"
    path.write_text(text)
    return path


def test_a_chain_is_told_by_its_key(tmp_path: Path):
    recipe = read_recipe(write(tmp_path, CHAIN), ["every.optim.lr=0.5", "chain.0.recipe=tiny/decoder-mlp"]).recipe
    assert isinstance(recipe, ChainRecipe)
    assert recipe.every == {"data": {"workers": 2}, "optim": {"lr": 0.5}}
    assert [step.recipe for step in recipe.chain] == ["tiny/decoder-mlp", "tiny/random"]


def test_nested_settings_become_overrides_that_a_recipe_takes():
    given = {"training": {"steps": 7}, "data": {"root": "a: b", "train": [{"format": "llava", "path": "x"}]}}
    recipe = load_recipe("tiny/random", list(as_overrides(given)))
    assert recipe.training.steps == 7
    assert recipe.data.root == "a: b"
    assert [source.path for source in recipe.data.train] == ["x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CHAIN.replace("start: first", "start: frist"), "starts from 'frist'.*before it are: first"),
        (CHAIN.replace("name: second", "name: first"), "two steps are called 'first'"),
        (CHAIN.replace("name: first", "name: ../first"), "chain.0.name"),
        (CHAIN.replace("change:", "chnage:"), "chnage"),
        ("chain: []", "chain"),
        (CHAIN + "mixes: {a.json: [scenes]}", "'mixes' are made of scenes"),
        (CHAIN + "scenes: {}\nmixes: {../a.json: [scenes]}", r"'\.\./a\.json' is no name of a \.json"),
        (CHAIN + "scenes: {}\nmixes: {a.json: []}", "'a.json' needs a mixture"),
    ],
)
def test_mistakes_in_a_chain(tmp_path: Path, text: str, message: str):
    with pytest.raises(SettingsError, match=message):
        read_recipe(write(tmp_path, text))


def test_a_chain_is_no_single_run(tmp_path: Path):
    with pytest.raises(SettingsError, match="chain of several runs"):
        load_recipe(write(tmp_path, CHAIN))
