"""Training the vision parent: a small tower that names what is in each cell of a picture, and has never read a word."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightbridge.config.model import VisionTowerSettings
from sightbridge.config.parent import ParentRecipe
from sightbridge.data.scenes.draw import draw_scene
from sightbridge.data.scenes.world import COLOURS, DIGITS, POSITIONS, SHAPES, Scene, sample_scene
from sightbridge.images.transforms import ImageTransform
from sightbridge.models.build import build_vision_tower
from sightbridge.models.losses import Loss
from sightbridge.models.vision_tower import VisionTower
from sightbridge.parents.drawn import DrawnBatches
from sightbridge.parents.folder import write_parent
from sightbridge.training.loop import train

KINDS = (*SHAPES, *DIGITS)
"""Classes of objects; class 0 is an empty cell, so kind i has class i + 1."""
EMPTY_WEIGHT = 0.3
"""Weight of empty cells in the loss of the kinds: they are three quarters of all cells."""
DRAWN_SIZE = 96
"""Side of a drawn picture in pixels, before the transform makes it the tower's."""


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures (N, 3, H, W) and, for each of the nine cells, the class of kind and of colour (N, 9), 0 = empty."""

    pixel_values: Tensor
    kinds: Tensor
    colours: Tensor
    ids: tuple[str, ...] = ()

    @property
    def loss_counts(self) -> dict[str, int]:
        """What the loss is divided by: pictures."""
        return {"cells": len(self.kinds)}

    def __len__(self) -> int:
        return len(self.kinds)

    def to(self, device: torch.device | str) -> LabelledPictures:
        """Move all tensors."""
        moved = {name: getattr(self, name).to(device) for name in ("pixel_values", "kinds", "colours")}
        return replace(self, **moved)


class CellClassifier(nn.Module):
    """A vision tower with three linear heads on every position: which kind, which colour, which cell."""

    def __init__(self, vision_tower: VisionTower) -> None:
        super().__init__()
        assert vision_tower.positions == POSITIONS, "the tower must see the grid's cells as its patches"
        width = vision_tower.channels
        self.vision_tower = vision_tower
        self.connector = nn.ModuleDict(
            {
                "kind": nn.Linear(width, len(KINDS) + 1),
                "colour": nn.Linear(width, len(COLOURS) + 1),
                "cell": nn.Linear(width, POSITIONS),
            }
        )
        self.language_model = nn.Identity()

    def classify(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Logits of each head (N, 9, classes)."""
        features = self.vision_tower(pixel_values)
        return {name: head(features) for name, head in self.connector.items()}

    def forward(self, batch: LabelledPictures) -> dict[str, Loss]:
        """``cells``: summed loss of the three heads (per picture: the mean over its cells), and how many pictures."""
        logits = {name: values.flatten(0, 1) for name, values in self.classify(batch.pixel_values).items()}
        weights = torch.ones(len(KINDS) + 1, device=batch.kinds.device)
        weights[0] = EMPTY_WEIGHT
        cells = torch.arange(POSITIONS, device=batch.kinds.device).repeat(len(batch))
        loss = (
            F.cross_entropy(logits["kind"], batch.kinds.flatten(), weight=weights)
            + F.cross_entropy(logits["colour"], batch.colours.flatten())
            # where a feature is from stays readable, although nothing else asks for it
            + 0.3 * F.cross_entropy(logits["cell"], cells)
        )
        return {"cells": Loss(loss * len(batch), len(batch))}


@dataclass
class SceneCells(DrawnBatches[LabelledPictures]):
    """Endless labelled pictures of shapes and of digits, fixed by the seed."""

    recipe: ParentRecipe
    transform: ImageTransform
    batches_per_epoch: int = 1000

    def draw(self, number: int) -> LabelledPictures:
        """Draw and label batch ``number``."""
        return self.batch(random.Random(f"{self.recipe.training.seed}/{number}"), self.recipe.training.batch_size)

    def batch(self, rng: random.Random, size: int, held_out: bool = False) -> LabelledPictures:
        """Draw and label ``size`` pictures."""
        scenes = [
            sample_scene(rng, rng.choices(["shapes", "digits"], [45, 55])[0], held_out=held_out)  # type: ignore[arg-type]
            for _ in range(size)
        ]
        pixels = [self.transform(draw_scene(scene, DRAWN_SIZE)[0]) for scene in scenes]
        return LabelledPictures(torch.stack(pixels), *_labels(scenes))


def _labels(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    kinds, colours = torch.zeros(2, len(scenes), POSITIONS, dtype=torch.long)
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            kinds[row, thing.position] = KINDS.index(thing.kind) + 1
            colours[row, thing.position] = COLOURS.index(thing.colour) + 1
    return kinds, colours


def train_vision_parent(recipe: ParentRecipe, folder: Path) -> dict[str, Any]:
    """Train the tower and write it as a Hugging Face folder; returns accuracy per head on pictures not trained on."""
    torch.manual_seed(recipe.training.seed)
    tower = build_vision_tower(VisionTowerSettings(config=recipe.config))  # type: ignore[call-arg]
    model = CellClassifier(tower)
    cells = SceneCells(recipe, ImageTransform(recipe.image))
    held_out = cells.batch(random.Random("held out"), 500, held_out=True)

    def evaluate(classifier: nn.Module, step: int) -> dict[str, float]:
        return cell_accuracy(cast(CellClassifier, classifier), held_out)

    history = train(model, cells, recipe.training, recipe.optim, folder / "run", evaluate=evaluate, title="looking")
    write_parent(tower.model, folder)
    return history[-1]


@torch.no_grad()
def cell_accuracy(model: CellClassifier, pictures: LabelledPictures) -> dict[str, float]:
    """Share of cells named rightly: empty ones, shapes, digits (scans never trained on), colours."""
    logits = model.classify(pictures.pixel_values)
    kind_hits = logits["kind"].argmax(-1) == pictures.kinds
    colour_hits = logits["colour"].argmax(-1) == pictures.colours
    shapes = (pictures.kinds > 0) & (pictures.kinds <= len(SHAPES))
    digits = pictures.kinds > len(SHAPES)
    return {
        "accuracy/empty": kind_hits[pictures.kinds == 0].float().mean().item(),
        "accuracy/shape": kind_hits[shapes].float().mean().item(),
        "accuracy/digit": kind_hits[digits].float().mean().item(),
        "accuracy/colour": colour_hits[pictures.kinds > 0].float().mean().item(),
    }
