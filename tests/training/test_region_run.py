"""Whole runs on marked pictures: every order of the data, and features that are stored or refused."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image

from sightbridge.config.load import read_recipe
from sightbridge.errors import SettingsError
from sightbridge.training.cache_run import build_recipe_cache
from sightbridge.training.preflight import check_run
from sightbridge.training.run import run_recipe
from small_models import LLAMA, TOKENIZERS, TOWER

RECIPE = """
model:
  vision_tower: {{config: {tower}, class_token: drop}}
  connector: {{kind: linear}}
  language_model: {{config: {llama}, tokenizer: {tokenizer}}}
  prompt: {{template: vicuna_v1, max_length: 400}}
  image: {{size: 28}}
data:
  root: {root}
  train: [{{format: vip_llava, path: rows.json}}]
  validation: [{{format: vip_llava, path: rows.json, limit: 2}}]
optim: {{lr: 1e-2}}
training: {{steps: 4, batch_size: 2, log_every: 1}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Rows of a data set, of one's own, and of text alone, about one small picture."""
    Image.new("RGB", (40, 30), (90, 120, 200)).save(tmp_path / "a.png")
    box, talk = [4, 5, 30, 20], [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hello to you."}]
    own = [{"from": "human", "value": "<image>\nWhat is <bbox0>?"}, {"from": "gpt", "value": "A bus."}]
    rows = [
        {"id": "refcocog-1", "image": "a.png", "bboxes": [box], "answer": "a bus"},
        {"id": "vg_rel-1", "image": "a.png", "bboxes": [box, [1, 2, 9, 9]], "answer": "(bus, on, road)"},
        {"id": "own", "image": "a.png", "bbox": box, "conversations": own},
        {"id": "fixed", "image": "a.png", "bbox": box, "conversations": own, "shape": "mask", "color": "red"},
        {"id": "talk", "conversations": talk},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    path = tmp_path / "recipe.yaml"
    settings = {"tower": json.dumps(TOWER), "llama": json.dumps(LLAMA)}
    path.write_text(RECIPE.format(root=tmp_path, tokenizer=TOKENIZERS / "llama", **settings))
    return path


def losses(recipe: Path, *overrides: str) -> list[float]:
    folder = recipe.parent / f"run{len(list(recipe.parent.iterdir()))}"
    lines = run_recipe(read_recipe(str(recipe), list(overrides)), folder)
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("order", ["data.group_by_length=true", "data.group_by_length=llava", "data.pack=true"])
def test_rows_of_regions_have_lengths_to_be_ordered_by(recipe: Path, order: str) -> None:
    planned = check_run(read_recipe(str(recipe), [order])).order
    assert all(length.tokens > 10 for length in planned.lengths)
    assert [length.images for length in planned.lengths] == [1, 1, 1, 1, 0]
    if order.endswith("llava"):
        assert all(length.words > 3 for length in planned.lengths)
    assert len(losses(recipe, order, "training.steps=1")) == 1
    (run,) = recipe.parent.glob("run*")
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    shown = [name for sample in samples for name in sample["images"]]
    assert len(shown) == 2 and all(Path(name).parent == run / "samples" and Path(name).is_file() for name in shown)
    assert (run / "report.html").read_text().count("data:image/jpeg") == 2


def test_stored_views_train_as_drawn_ones_while_they_last(recipe: Path) -> None:
    """Ten records in two epochs of two views: nothing that is stored is seen twice."""
    options = ["training.steps=5", "data.cache_dtype=float32", "data.cache_views=2"]
    loaded = read_recipe(str(recipe), [*options, f"data.cache={recipe.parent / 'cache'}"])
    plan = build_recipe_cache(loaded, lambda plan: nullcontext(lambda pictures: None)).plan
    assert plan.missing == 4 * 2 + 2, "four marked records in two views, two of them in validation"
    drawn = losses(recipe, *options)
    assert losses(recipe, *options, f"data.cache={recipe.parent / 'cache'}") == pytest.approx(drawn, rel=1e-5)


@pytest.mark.parametrize("cache", ["memory", "cache"])
def test_marks_that_change_are_not_stored_as_one_picture(recipe: Path, cache: str) -> None:
    with pytest.raises(
        SettingsError, match=r"rows\.json, row 1: marks a part of its picture anew in every epoch"
    ) as told:
        check_run(read_recipe(str(recipe), [f"data.cache={cache}"]))
    assert told.value.key == "data.cache" and "data.cache_views=4" in str(told.value)
