"""The vision parent: labels that are the scene, a loss that is what it says, and a few steps of its recipe."""

import random

import pytest
import torch
from small_parents import small_recipe
from torch.nn import functional as F
from transformers import AutoModel

from sightbridge.config.model import VisionTowerSettings
from sightbridge.data.scenes.draw import draw_scene
from sightbridge.data.scenes.world import COLOURS, DIGITS, HELD_OUT_VARIANT, POSITIONS, SHAPES, sample_scene
from sightbridge.images.transforms import ImageTransform
from sightbridge.models.build import build_vision_tower
from sightbridge.parents import vision
from sightbridge.parents.vision import (
    DRAWN_SIZE,
    EMPTY_WEIGHT,
    KINDS,
    CellClassifier,
    SceneCells,
    cell_accuracy,
    train_vision_parent,
)


@pytest.fixture
def cells():
    recipe = small_recipe("tiny/parent-vision")
    return SceneCells(recipe, ImageTransform(recipe.image))


@pytest.fixture
def classifier():
    recipe = small_recipe("tiny/parent-vision")
    return CellClassifier(build_vision_tower(VisionTowerSettings(config=recipe.config)))  # type: ignore[call-arg]


def test_labels_are_the_scene(cells, monkeypatch):
    scenes = []

    def remember(*arguments, **options):
        scenes.append(sample_scene(*arguments, **options))
        return scenes[-1]

    monkeypatch.setattr(vision, "sample_scene", remember)
    pictures = cells.batch(random.Random(2), 12)
    assert len(pictures) == pictures.loss_counts["cells"] == len(scenes) == 12
    assert {scene.object_set for scene in scenes} == {"shapes", "digits"}
    for scene, pixels, kinds, colours in zip(
        scenes, pictures.pixel_values, pictures.kinds.tolist(), pictures.colours.tolist(), strict=True
    ):
        there = {o.position: o for o in scene.objects}
        for cell in range(POSITIONS):
            if cell in there:
                assert KINDS[kinds[cell] - 1] == there[cell].kind
                assert COLOURS[colours[cell] - 1] == there[cell].colour
            else:
                assert kinds[cell] == colours[cell] == 0
        assert torch.equal(pixels, cells.transform(draw_scene(scene, DRAWN_SIZE)[0]))
    assert all(o.variant < HELD_OUT_VARIANT for scene in scenes for o in scene.objects)


def test_held_out_pictures_hold_other_scans(cells, monkeypatch):
    asked = []
    monkeypatch.setattr(
        vision, "sample_scene", lambda *a, held_out: asked.append(held_out) or sample_scene(*a, held_out=held_out)
    )
    cells.batch(random.Random(0), 3, held_out=True)
    cells.batch(random.Random(0), 3)
    assert asked == [True] * 3 + [False] * 3


def test_pictures_are_fixed_by_seed_and_step(cells):
    first, again = (list(zip(range(2), cells.epoch(0), strict=False)) for _ in range(2))
    assert torch.equal(first[0][1].pixel_values, again[0][1].pixel_values)
    assert not torch.equal(first[0][1].pixel_values, first[1][1].pixel_values)


def test_classes_are_shapes_then_digits():
    assert (*SHAPES, *DIGITS) == KINDS


def test_the_loss_is_a_sum_over_pictures(classifier, cells):
    pictures = cells.batch(random.Random(1), 5)
    loss = classifier(pictures)["cells"]
    logits = classifier.classify(pictures.pixel_values)
    assert {name: tuple(values.shape) for name, values in logits.items()} == {
        "kind": (5, 9, 15),
        "colour": (5, 9, 7),
        "cell": (5, 9, 9),
    }
    kinds, colours = pictures.kinds.flatten(), pictures.colours.flatten()
    weights = torch.where(kinds == 0, EMPTY_WEIGHT, 1.0)
    kind = (F.cross_entropy(logits["kind"].flatten(0, 1), kinds, reduction="none") * weights).sum() / weights.sum()
    colour = F.cross_entropy(logits["colour"].flatten(0, 1), colours, reduction="none").mean()
    cell = -logits["cell"].log_softmax(-1).diagonal(dim1=1, dim2=2).mean()
    assert loss.count == 5
    assert loss.sum.item() == pytest.approx(5 * (kind + colour + 0.3 * cell).item(), rel=1e-5)


def test_accuracy_by_class(classifier, cells):
    pictures = cells.batch(random.Random(3), 30)
    kinds = F.one_hot(pictures.kinds, len(KINDS) + 1).float()
    colours = F.one_hot(pictures.colours, len(COLOURS) + 1).float()
    classifier.classify = lambda pixels: {"kind": kinds, "colour": colours}
    names = {"accuracy/empty", "accuracy/shape", "accuracy/digit", "accuracy/colour"}
    assert cell_accuracy(classifier, pictures) == dict.fromkeys(names, 1.0)
    kinds[..., 1 + len(SHAPES) :] = 0  # no digit is ever named: they are taken for empty cells
    colours[..., 1:] = 0
    assert cell_accuracy(classifier, pictures) == {
        "accuracy/empty": 1.0,
        "accuracy/shape": 1.0,
        "accuracy/digit": 0.0,
        "accuracy/colour": 0.0,
    }


def test_the_recipe_trains_and_writes_an_ordinary_folder(tmp_path):
    recipe = small_recipe("tiny/parent-vision")
    last = train_vision_parent(recipe, tmp_path / "one")
    assert last["kind"] == "evaluation" and 0 <= last["accuracy/colour"] <= 1
    model, report = AutoModel.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    again = build_vision_tower(VisionTowerSettings(source=str(tmp_path / "one")))  # type: ignore[call-arg]
    assert again.positions == POSITIONS and again.channels == 32
    assert torch.isfinite(again(torch.zeros(1, 3, 48, 48))).all()
    assert model.config.model_type == "siglip_vision_model"

    train_vision_parent(recipe, tmp_path / "two")
    files = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("one", "two")]
    assert files[0] == files[1], "a recipe makes the same parent every time"
