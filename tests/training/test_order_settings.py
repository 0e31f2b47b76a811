"""Settings of the order of the data: what is refused before anything is read, and whole runs of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import rmtree

import pytest

from sightbridge.config.data import DataSettings
from sightbridge.config.load import read_recipe
from sightbridge.errors import DataError, SettingsError
from sightbridge.training.preflight import check_run
from sightbridge.training.run import run_recipe
from small_models import LLAMA, TOKENIZERS, TOWER

RECIPE = """
model:
  vision_tower: {{config: {tower}, class_token: drop}}
  connector: {{kind: linear}}
  language_model: {{config: {llama}, tokenizer: {tokenizer}}}
  prompt: {{template: plain, max_length: 48}}
  image: {{size: 28}}
data:
  root: {root}
  train: [{{format: llava, path: long.json}}, {{format: llava, path: short.json}}]
optim: {{lr: 1e-2}}
training: {{steps: 1, batch_size: 12, log_every: 1, parts: {{language_model: {{train: full}}}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe on two files of 4 long and 8 short texts without pictures."""
    for name, number, words in (("long.json", 4, 9), ("short.json", 8, 2)):
        rows = [
            {
                "id": f"{name}-{n}",
                "conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "bus " * (words + n % 2)}],
            }
            for n in range(number)
        ]
        (tmp_path / name).write_text(json.dumps(rows))
    path = tmp_path / "recipe.yaml"
    settings = {"tower": json.dumps(TOWER), "llama": json.dumps(LLAMA)}
    path.write_text(RECIPE.format(root=tmp_path, tokenizer=TOKENIZERS / "llama", **settings))
    return path


def losses(recipe: Path, *overrides: str) -> list[dict]:
    loaded = read_recipe(str(recipe), list(overrides))
    folder = recipe.parent / f"run{len(list(recipe.parent.iterdir()))}"
    return [line for line in run_recipe(loaded, folder) if line["kind"] == "train"]


def test_packed_and_grouped_runs_have_the_loss_of_a_plain_one(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All records are in the one step, however they share rows: three of 48 positions, or twelve."""
    plain = losses(recipe)
    assert "pack" not in capsys.readouterr().out
    packed = losses(recipe, "data.pack=true", "training.batch_size=3")
    out = capsys.readouterr().out
    grouped = losses(recipe, "data.group_by_length=true", "training.batch_size=3", "training.accumulation=4")
    assert "an epoch packs 12 records into 3 rows of 48 positions, 65% full" in out
    assert plain[0]["grad_norm"] > 0.1
    llavas = losses(recipe, "data.group_by_length=llava", "training.batch_size=3", "training.accumulation=4")
    for line in (packed[0], grouped[0], llavas[0]):
        assert line["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-4)


def test_llavas_order_counts_words_and_resumes(recipe: Path) -> None:
    options = ["data.group_by_length=llava", "training.batch_size=2", "training.accumulation=2", "training.steps=6"]
    loaded = read_recipe(str(recipe), [*options, "training.save_every=4"])
    order = check_run(loaded).order
    assert [length.words for length in order.lengths] == [9, 10, 9, 10, 2, 3, 2, 3, 2, 3, 2, 3]
    assert order.llava_batch == 2 and not order.group_by_length
    straight = run_recipe(loaded, recipe.parent / "straight")
    run_recipe(loaded, recipe.parent / "killed")
    newest = sorted((recipe.parent / "killed" / "checkpoints").iterdir())[-1]
    rmtree(newest)
    resumed = run_recipe(loaded, recipe.parent / "killed", resume=True)
    assert [line["loss"] for line in resumed] == [line["loss"] for line in straight]


def test_a_mixture_is_announced_and_an_epoch_is_as_many_draws_as_records(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["data.mixture=weights", "data.train.0.weight=24", "training.steps=null", "training.epochs=2"]
    lines = losses(recipe, *options, "training.batch_size=4")
    assert "drawn from long.json 75.0%, short.json 25.0%" in capsys.readouterr().out, "8 records weigh 8"
    assert len(lines) == 6


def test_settings_that_do_not_go_together() -> None:
    source = {"format": "llava", "path": "a.json"}
    with pytest.raises(ValueError, match="not both"):
        DataSettings.model_validate({"pack": True, "group_by_length": True})
    with pytest.raises(ValueError, match="not both"):
        DataSettings.model_validate({"pack": True, "group_by_length": "llava"})
    with pytest.raises(SettingsError, match=r"data\.group_by_length"):
        read_recipe("tiny/decoder-mlp", ["data.group_by_length=lava"])
    with pytest.raises(ValueError, match="counts only with mixture: weights"):
        DataSettings.model_validate({"train": [{**source, "weight": 2}]})
    DataSettings.model_validate({"train": [{**source, "weight": 2}, source], "mixture": "weights"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.prompt.max_length=null"], r"how many positions a row has room for\. Set model\.prompt\.max_length"),
        (
            ["model.language_model.config.model_type=gpt_neox"],
            r"type 'gpt_neox', which is not known to keep them apart",
        ),
    ],
)
def test_packing_is_refused_before_anything_is_read(recipe: Path, overrides: list[str], message: str) -> None:
    (recipe.parent / "long.json").unlink()
    with pytest.raises(SettingsError, match=message):
        losses(recipe, "data.pack=true", *overrides)


def test_a_source_without_usable_records_cannot_be_drawn_from(recipe: Path) -> None:
    (recipe.parent / "short.json").write_text(
        json.dumps([{"id": "x", "conversations": [{"from": "human", "value": "a"}]}])
    )
    options = ["data.mixture=weights", "data.no_target=skip"]
    with pytest.raises(DataError, match=r"short\.json: none of its records can be used"):
        losses(recipe, *options)
