"""Recipes from files, bases and overrides; every mistake is told with its key and its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from sightbridge.config.base import Settings
from sightbridge.config.catalogue import find_recipe
from sightbridge.config.describe import known_keys
from sightbridge.config.load import (
    describe,
    load_recipe,
    read_recipe,
    recipe_names,
    recipe_schema,
    save_resolved,
    write_atomically,
)
from sightbridge.config.problems import validate
from sightbridge.config.qformer_recipe import QFormerRecipe
from sightbridge.config.recipe import Recipe
from sightbridge.config.yaml_tree import Given, read_yaml
from sightbridge.errors import SettingsError

MINIMAL = """\
model:
  vision_tower: {source: tower}
  connector:
    kind: mlp
    layers: 2
  language_model: {source: lm}
  prompt: {template: plain}
training:
  steps: 5
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(MINIMAL)
    return path


def message(path: Path | str, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_shipped_recipe_by_name() -> None:
    recipe = load_recipe("tiny/random")
    assert recipe.optim.lr == 1e-3
    assert recipe.model.vision_tower.config is not None
    assert "tiny/random" in recipe_names()


def test_overrides_are_yaml(minimal: Path) -> None:
    recipe = load_recipe(
        minimal,
        [
            "optim.lr=1e-4",
            "optim.betas=[0.9, 0.95]",
            "optim.clip_norm=null",
            "data.train=[{format: llava, path: a.json}]",
            "data.train.0.limit=7",
            "model.connector={kind: linear}",
            "model.prompt.system='no'",
            "data.root=a=b",
            "model.prompt.switches.some_quirk=true",
        ],
    )
    assert recipe.optim.lr == 1e-4
    assert recipe.optim.betas == (0.9, 0.95)
    assert recipe.optim.clip_norm is None
    assert recipe.data.train[0].limit == 7
    assert recipe.model.connector.options == {}
    assert recipe.model.prompt.system == "no"
    assert recipe.data.root == "a=b"
    assert recipe.model.prompt.switches == {"some_quirk": True}


def test_later_overrides_win(minimal: Path) -> None:
    assert load_recipe(minimal, ["optim.lr=1", "optim.lr=2"]).optim.lr == 2


def test_numbers_inside_free_settings_are_numbers(minimal: Path) -> None:
    recipe = load_recipe(minimal, ["model.language_model={config: {model_type: llama, rms_norm_eps: 1e-5}}"])
    assert recipe.model.language_model.config == {"model_type": "llama", "rms_norm_eps": 1e-5}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lrr=1", "override 1: optim.lrr: unknown setting. Did you mean 'lr'?"),
        ("batch_size=1", "override 1: batch_size: unknown setting. Did you mean 'training.batch_size'?"),
        ("zzz=1", "override 1: zzz: unknown setting. Known here: description, hardware, model"),
        ("optim.lr=fast", 'override 1: optim.lr: expected a number, got "fast"'),
        ("optim.lr='1e-4'", 'override 1: optim.lr: expected a number, got "1e-4"'),
        ("optim.lr=0", "override 1: optim.lr: expected a number above 0, got 0"),
        ("optim.lr=.inf", "override 1: optim.lr: expected a finite number, got Infinity"),
        ("optim.lr=.nan", "override 1: optim.lr: expected a finite number, got NaN"),
        ("optim.warmup_ratio=1", "override 1: optim.warmup_ratio: expected a number below 1, got 1"),
        ("training.steps=1e3", "override 1: training.steps: expected a whole number, got 1000.0"),
        ("training.steps=true", "override 1: training.steps: expected a whole number, got true"),
        (
            f"training.seed={2**63}",
            "override 1: training.seed: expected a number below 9.22337e+18, got 9223372036854775808",
        ),
        ("training.tensorboard=1", "override 1: training.tensorboard: expected true or false, got 1"),
        ("data.root=1", "override 1: data.root: expected text, got 1"),
        ("optim=3", "override 1: optim: expected a group of settings, got 3"),
        ("data.train=x", 'override 1: data.train: expected a list, got "x"'),
        ("data.train=[{format: llava}]", "override 1: data.train.0.path: missing, it must be given"),
        ("data.train=[{format: a, path: b, pth: c}]", "data.train.0.pth: unknown setting. Did you mean 'path'?"),
        ("optim.betas=[1]", "override 1: optim.betas.1: missing, the list is too short"),
        ("optim.betas=[1, 1, 1]", "override 1: optim.betas: expected at most 2 values, got [1, 1, 1]"),
        ("model.image.fit=cropp", "got \"cropp\". Did you mean 'crop'?"),
        ("model.vision_tower.layers=all", "layers: expected a list or 'output', got \"all\""),
        (
            "model.vision_tower.layers=[1, x]",
            'override 1: model.vision_tower.layers.1: expected a whole number, got "x"',
        ),
        ("model.prompt=null", "override 1: model.prompt: expected a group of settings, got null"),
        ("data.train.0.limit=1", "override 1: data.train: expected a list"),
        ("model.prompt.template.x=1", "override 1: model.prompt.template is the single value 'plain'"),
        ("optim.lr", "override 1: 'optim.lr' is not of the form key=value"),
        ("optim..lr=1", "override 1: 'optim..lr=1' is not of the form key=value"),
        ("optim.lr=", "override 1: 'optim.lr=' has no value"),
        ("optim.lr=# 1", "override 1: 'optim.lr=# 1' has no value"),
        ("data.root=[", "override 1: not valid YAML"),
        ("base=tiny/random", "override 1: base: unknown setting."),
    ],
)
def test_wrong_overrides(minimal: Path, override: str, expected: str) -> None:
    assert expected in message(minimal, override)


def test_unknown_list_element() -> None:
    assert message("tiny/random", "data.train.3.limit=1") == "override 1: data.train has no element '3' (it has 1)"


def test_file_problems_name_their_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(MINIMAL.replace("steps: 5", "steps: five\n  stps: 5\noptim:\n  # comment\n  lr: fast"))
    lines = message(path, "optim.eps=0").splitlines()
    assert lines[0] == "4 problems in the settings"
    assert {line.strip() for line in lines[1:]} == {
        f'{path}:9: training.steps: expected a whole number, got "five"',
        f"{path}:10: training.stps: unknown setting. Did you mean 'steps'?",
        f'{path}:13: optim.lr: expected a number, got "fast"',
        "override 1: optim.eps: expected a number above 0, got 0",
    }


def test_checks_between_settings_name_the_group(minimal: Path) -> None:
    assert message(minimal, "training.epochs=1") == f"{minimal}:8: training: give exactly one of 'steps' and 'epochs'"


def test_missing_settings_name_the_group_they_belong_in(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    text = message(path)
    assert f"{path}:1: model: missing" in text
    assert f"{path}:1: training: missing" in text


@pytest.mark.parametrize("text", ["- a\n", "just text\n"])
def test_a_recipe_is_a_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(text)
    assert message(path) == f"{path}:1: a recipe is a group of settings (key: value)"


def test_unknown_names() -> None:
    assert "unknown recipe 'tiny/randm'. Did you mean 'tiny/random'?" in message("tiny/randm")
    assert message("nowhere/my.yaml") == f"recipe file '{Path('nowhere/my.yaml')}' does not exist"


def test_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: \xff\xfe")
    assert message(path) == f"{path}: not a text file in UTF-8 (byte 3)"


def test_base_is_merged_and_keeps_its_origins(minimal: Path) -> None:
    child = minimal.parent / "sub" / "child.yaml"
    child.parent.mkdir()
    child.write_text("base: ../my.yaml\ntraining:\n  batch_size: 2\nmodel:\n  connector: !replace {kind: linear}\n")
    loaded = read_recipe(child, ["optim.lr=1"])
    assert loaded.recipe.training.steps == 5
    assert loaded.recipe.training.batch_size == 2
    assert loaded.recipe.model.connector.kind == "linear"
    assert loaded.recipe.model.connector.options == {}
    assert loaded.given("training.batch_size") == f"{child}:3"
    assert loaded.given("training.steps") == f"{child.parent / '../my.yaml'}:9"
    assert loaded.given("optim.lr") == "override 1"
    assert loaded.given("optim.eps") is None
    assert loaded.where("training.epochs") == f"{child}:2"


def test_base_may_be_a_shipped_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: tiny/random\ntraining: {steps: 3}\n")
    shipped = load_recipe("tiny/random")
    assert load_recipe(path) == shipped.model_copy(
        update={"training": shipped.training.model_copy(update={"steps": 3})}
    )


def test_bases_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    text = message(tmp_path / "a.yaml")
    assert "in a circle" in text
    assert text.count("a.yaml") == 2


def test_unknown_base_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("description: x\nbase: tiny/randm\n")
    assert message(path).startswith(f"{path}:2: base: unknown recipe 'tiny/randm'. Did you mean 'tiny/random'?")


def test_later_checks_are_located(minimal: Path) -> None:
    loaded = read_recipe(minimal)
    with pytest.raises(SettingsError) as caught, loaded.locating():
        raise SettingsError("expected at most 1", key="model.connector.layers")
    assert str(caught.value) == f"{minimal}:5: model.connector.layers: expected at most 1"
    with pytest.raises(SettingsError) as caught, loaded.locating(), loaded.locating():
        raise SettingsError("model.connector.depth is unknown", key="model.connector.depth")
    assert str(caught.value) == f"{minimal}:3: model.connector.depth is unknown"
    with pytest.raises(SettingsError, match=r"^no key$"), loaded.locating():
        raise SettingsError("no key")


class _Options(Settings):
    width: int = Field(default=1, description="w")


def test_validate_works_for_any_settings() -> None:
    tree = read_yaml("width: 1\nwidht: 2\n", lambda line: f"f:{line}")
    assert tree is not None
    with pytest.raises(SettingsError, match=r"^f:2: widht: unknown setting\. Did you mean 'width'\?$"):
        validate(_Options, tree)
    assert validate(_Options, Given({}, "f")).width == 1


@pytest.mark.parametrize("name", recipe_names())
def test_saved_recipes_load_back_equal(name: str, tmp_path: Path) -> None:
    changes = ["hardware='1e-4'", "description='no: # \"x\" é 你'"]
    if not name.endswith("-chain"):  # whose settings are those of its runs
        changes.append("optim.eps=1e-9")
    recipe = read_recipe(name, changes).recipe
    save_resolved(recipe, tmp_path / "run" / "recipe.yaml")
    assert read_recipe(tmp_path / "run" / "recipe.yaml").recipe == recipe
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_a_parents_recipe_is_no_ordinary_one() -> None:
    with pytest.raises(SettingsError, match=r"parent-vision\.yaml:\d+: .* 'sightbridge train tiny/parent-vision'"):
        load_recipe("tiny/parent-vision")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_describe_covers_every_setting() -> None:
    rows = describe(load_recipe("tiny/random"))
    keys = [row.key for row in rows]
    assert len(keys) == len(set(keys))
    assert {"optim.lr", "model.connector.kind", "data.train.0.format", "model.vision_tower.config.hidden_size"} <= set(
        keys
    )
    unexplained = [row.key for row in rows if not row.meaning and ".config." not in row.key]
    assert unexplained == []
    assert next(row.value for row in rows if row.key == "optim.lr") == 1e-3


def test_described_keys_can_be_overridden() -> None:
    recipe = load_recipe("tiny/random")
    for row in describe(recipe):
        if isinstance(row.value, int | float) and not isinstance(row.value, bool):
            assert load_recipe("tiny/random", [f"{row.key}={row.value}"]) == recipe


def test_known_keys() -> None:
    keys = known_keys(Recipe)
    assert {"model", "model.vision_tower.layers", "training.parts.connector.lr", "data.train"} <= set(keys)
    assert "data.train.format" not in keys


def test_schema_allows_a_base_and_requires_nothing() -> None:
    schema = recipe_schema([Recipe, QFormerRecipe])
    assert schema["anyOf"] == [{"$ref": "#/$defs/Recipe"}, {"$ref": "#/$defs/QFormerRecipe"}]
    for kind in ("Recipe", "QFormerRecipe"):
        assert schema["$defs"][kind]["properties"]["base"]["type"] == "string"
    assert "'required':" not in str(schema)
    assert schema["$defs"]["OptimSettings"]["properties"]["lr"]["description"] == "peak learning rate"


def test_shipped_names_win_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "random").write_text("x: 1\n")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("tiny/random").suffix == ".yaml"


QFORMER = """\
model:
  vision_tower: {source: tower}
  qformer: {num_queries: 4}
training: {steps: 5}
"""


def test_the_key_model_qformer_makes_a_recipe_of_the_first_stage(tmp_path: Path) -> None:
    path = tmp_path / "stage1.yaml"
    path.write_text(QFORMER)
    loaded = read_recipe(path, ["training.parts.qformer.lr=1e-3", "model.qformer.dropout=0"])
    recipe = loaded.recipe
    assert isinstance(recipe, QFormerRecipe)
    assert recipe.model.qformer.options == {"num_queries": 4, "dropout": 0}
    assert recipe.model.text.max_length == 32
    assert recipe.training.parts.qformer.lr == 1e-3
    assert recipe.training.parts.vision_tower.train == "frozen"
    assert any(row.key == "training.parts.qformer.lr" for row in describe(recipe))

    save_resolved(recipe, tmp_path / "resolved.yaml")
    assert read_recipe(tmp_path / "resolved.yaml").recipe == recipe


def test_a_recipe_of_the_first_stage_has_its_own_keys(tmp_path: Path) -> None:
    path = tmp_path / "stage1.yaml"
    path.write_text(QFORMER)
    with pytest.raises(SettingsError, match=r"override 1: training.parts.connector: unknown setting"):
        read_recipe(path, ["training.parts.connector.train=full"])
    with pytest.raises(SettingsError, match=rf"{path}:3: .*has not met a language model.*sightbridge train"):
        load_recipe(path)
