"""Drawing scenes: antialiased shapes, or real scanned digits in coloured ink, on varying backgrounds."""

from __future__ import annotations

import math
import random
from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image, ImageDraw

from sightbridge.data.scenes.world import GRID, HELD_OUT_VARIANT, Scene, SceneObject

INK: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (35, 160, 60),
    "blue": (35, 75, 215),
    "yellow": (240, 205, 25),
    "purple": (140, 50, 165),
    "orange": (245, 130, 25),
}
_SUPERSAMPLING = 3
Box = tuple[float, float, float, float]


def _around(corners: int, reaches: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """Points clockwise from the top, as far from the middle as ``reaches`` say in turn."""
    angles = [math.pi * corner / (corners / 2) - math.pi / 2 for corner in range(corners)]
    distances = [reaches[corner % len(reaches)] for corner in range(corners)]
    return tuple(
        (reach * math.cos(angle), reach * math.sin(angle)) for reach, angle in zip(distances, angles, strict=True)
    )


_STAR = _around(10, (1.08, 0.45))
_OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": _around(24, (1.0,)),
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1), (1, 1), (-1, 1)),
    "star": _STAR,
}
"""Corners around a middle of (0, 0); only their proportions count."""


def draw_scene(scene: Scene, size: int = 96) -> tuple[Image.Image, list[Box]]:
    """Draw a scene as a square picture of ``size`` pixels.

    Returns the picture and, in the order of ``scene.objects``, each object's box (left, top, right, bottom) in pixels,
    which holds the object's outline or, of a digit, its scan. The same scene and size give the same pixels.
    """
    rng = random.Random(scene.seed)
    big = size * _SUPERSAMPLING
    canvas = Image.new("RGB", (big, big), _background(rng))
    boxes = []
    for thing in scene.objects:
        box = _place(thing, big / GRID)
        if scene.object_set == "digits":
            _draw_digit(canvas, thing, box)
        else:
            box = _draw_shape(canvas, thing, box)
        left, top, right, bottom = (round(min(max(edge, 0), big) / _SUPERSAMPLING, 1) for edge in box)
        boxes.append((left, top, right, bottom))
    return canvas.resize((size, size), Image.Resampling.BOX), boxes


def _background(rng: random.Random) -> tuple[int, int, int]:
    """Mostly light paper, sometimes dark."""
    base = rng.randint(215, 255) if rng.random() < 0.8 else rng.randint(0, 40)
    red, green, blue = (max(0, min(255, base + rng.randint(-8, 8))) for _ in range(3))
    return red, green, blue


def _place(thing: SceneObject, cell: float) -> Box:
    """A box of 55 to 85 % of the cell's side, moved within the cell."""
    rng = random.Random(thing.variant)
    side = cell * rng.uniform(0.55, 0.85)
    row, column = divmod(thing.position, GRID)
    left = column * cell + rng.uniform(0.04, 0.96) * (cell - side)
    top = row * cell + rng.uniform(0.04, 0.96) * (cell - side)
    return left, top, left + side, top + side


def _ink(thing: SceneObject) -> tuple[int, int, int]:
    rng = random.Random(thing.variant + 1)
    red, green, blue = (max(0, min(255, channel + rng.randint(-14, 14))) for channel in INK[thing.colour])
    return red, green, blue


def _draw_shape(canvas: Image.Image, thing: SceneObject, box: Box) -> Box:
    """Draw a shape about as large as ``box`` and return its own box: stars are a little larger, squares smaller."""
    pen, ink = ImageDraw.Draw(canvas), _ink(thing)
    left, top, right, bottom = box
    middle_x, middle_y, radius = (left + right) / 2, (top + bottom) / 2, (right - left) / 2
    points: list[tuple[float, float]] = []
    match thing.kind:
        case "circle":
            pen.ellipse(box, fill=ink)
            return box
        case "square":
            box = left + radius * 0.1, top + radius * 0.1, right - radius * 0.1, bottom - radius * 0.1
            pen.rectangle(box, fill=ink)
            return box
        case "triangle":
            points = [(middle_x, top), (right, bottom), (left, bottom)]
        case "star":
            points = [(middle_x + radius * x, middle_y + radius * y) for x, y in _STAR]
    pen.polygon(points, fill=ink)
    across, down = zip(*points, strict=True)
    return min(across), min(down), max(across), max(down)


def outline(thing: SceneObject, box: Box) -> list[float]:
    """The outline of a drawn shape in pixels, x1, y1, x2, y2, ..., from the box that ``draw_scene`` gave for it.

    Empty for a digit, of which only the scan's box is known.
    """
    points = _OUTLINES.get(thing.kind, ())
    if not points:
        return []
    (least_x, most_x), (least_y, most_y) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    left, top, right, bottom = box
    return [
        round(place, 1)
        for x, y in points
        for place in (
            left + (x - least_x) / (most_x - least_x) * (right - left),
            top + (y - least_y) / (most_y - least_y) * (bottom - top),
        )
    ]


@cache
def digit_scans() -> tuple[np.ndarray, np.ndarray]:
    """Real handwriting: 1797 scans (1797, 8, 8) uint8 of 0..16 and their digits (1797,).

    The test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
    Repository, CC BY 4.0, https://doi.org/10.24432/C50P49, as bundled with scikit-learn.
    """
    with np.load(str(files("sightbridge.data.scenes") / "digits.npz")) as data:
        return data["scans"], data["digits"]


def _draw_digit(canvas: Image.Image, thing: SceneObject, box: Box) -> None:
    scans, digits = digit_scans()
    of_kind = np.flatnonzero(digits == int(thing.kind))
    known = of_kind[: len(of_kind) * 4 // 5]
    choices = known if thing.variant < HELD_OUT_VARIANT else of_kind[len(known) :]
    scan = scans[choices[thing.variant % len(choices)]]
    left, top, right, bottom = (round(edge) for edge in box)
    mask = Image.fromarray((scan.astype(np.uint16) * 255 // 16).astype(np.uint8))
    mask = mask.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    canvas.paste(_ink(thing), (left, top), mask)
