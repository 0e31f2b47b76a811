"""From strokes to a layer: how much of each pixel of a part of the picture they cover."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageChops, ImageDraw

from sightbridge.visual_prompts.region import Point, bounds_of
from sightbridge.visual_prompts.shapes import Stroke

OVERSAMPLING = 4
"""Antialiased strokes are painted this many times as large, and the layer is then reduced ..."""
MAX_LAYER = 32_000_000
"""... unless that makes a layer of more pixels."""

LayerBox = tuple[int, int, int, int]


def find_bounds(strokes: Sequence[Stroke], size: tuple[int, int]) -> LayerBox | None:
    """The part of a picture of ``size`` that ``strokes`` may touch, or None."""
    left, top, right, bottom = bounds_of([stroke.points for stroke in strokes])
    reach = max(stroke.width for stroke in strokes) + 2
    at = (
        max(math.floor(left) - reach, 0),
        max(math.floor(top) - reach, 0),
        min(math.ceil(right) + reach, size[0]),
        min(math.ceil(bottom) + reach, size[1]),
    )
    return at if at[0] < at[2] and at[1] < at[3] else None


def paint(strokes: Sequence[Stroke], at: LayerBox, antialias: bool) -> Image.Image:
    """Return how much of each pixel of ``at`` the strokes cover, 0 to 255: a picture of mode L."""
    width, height = at[2] - at[0], at[3] - at[1]
    factor = max(1, min(OVERSAMPLING, math.isqrt(MAX_LAYER // (width * height)))) if antialias else 1
    layer = Image.new("L", (width * factor, height * factor))
    for stroke in strokes:
        points = [(x - at[0], y - at[1]) for x, y in stroke.points]
        _PAINTERS[stroke.kind](layer, points, stroke.width, 0 if stroke.erase else 255, factor)
    return layer.reduce(factor) if factor > 1 else layer


def _paint_line(layer: Image.Image, points: list[Point], width: int, ink: int, factor: int) -> None:
    """A line with round joints and ends; one whose points are all the same is a dot."""
    draw = ImageDraw.Draw(layer)
    points = _enlarge(points, factor)
    width *= factor
    draw.line(points, ink, width, joint="curve")
    for x, y in (points[0], points[-1]):
        left, top = int(x) - width // 2, int(y) - width // 2
        draw.ellipse((left, top, left + width - 1, top + width - 1), ink, outline=ink)  # one pixel is outline only


def _paint_polygon(layer: Image.Image, points: list[Point], width: int, ink: int, factor: int) -> None:
    ImageDraw.Draw(layer).polygon(_enlarge(points, factor), ink)


def _paint_rectangle(layer: Image.Image, points: list[Point], width: int, ink: int, factor: int) -> None:
    (left, top), (right, bottom) = corners = _enlarge_box(points, factor)
    draw = ImageDraw.Draw(layer)
    if 2 * width * factor > min(
        int(right) - int(left), int(bottom) - int(top)
    ):  # Pillow's lines would come out beyond it
        draw.rectangle(corners, ink)
    else:
        draw.rectangle(corners, outline=ink, width=width * factor)


def _paint_ellipse(layer: Image.Image, points: list[Point], width: int, ink: int, factor: int) -> None:
    corners = _enlarge_box(points, factor)
    if width == 0:
        ImageDraw.Draw(layer).ellipse(corners, ink)
    else:
        ImageDraw.Draw(layer).ellipse(corners, outline=ink, width=width * factor)


def _paint_contour(layer: Image.Image, points: list[Point], width: int, ink: int, factor: int) -> None:
    """A thin closed line, thickened by ``width`` pixels to each side, corners square: the reference's brush."""
    thin = Image.new("L", layer.size)
    points = _enlarge(points, factor)
    ImageDraw.Draw(thin).line([*points, *points[:2]], ink, factor)
    for across, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        thin = _smear(thin, across, down, width * factor)
    layer.paste(ImageChops.lighter(layer, thin))


def _smear(layer: Image.Image, across: int, down: int, steps: int) -> Image.Image:
    """The lightest of a layer and itself moved by 1, 2, ... ``steps`` pixels, twice as far each time."""
    reached = 0
    while reached < steps:
        step = min(reached + 1, steps - reached)
        moved = Image.new("L", layer.size)
        moved.paste(layer, (across * step, down * step))
        layer = ImageChops.lighter(layer, moved)
        reached += step
    return layer


_PAINTERS: dict[str, Callable[[Image.Image, list[Point], int, int, int], None]] = {
    "line": _paint_line,
    "polygon": _paint_polygon,
    "rectangle": _paint_rectangle,
    "ellipse": _paint_ellipse,
    "contour": _paint_contour,
}
"""By kind of stroke: ``(layer, points, width, ink, factor)``, painted on a layer ``factor`` times as large."""


def _enlarge(points: list[Point], factor: int) -> list[Point]:
    """Whole numbers are the middles of pixels: the first of four times as many is at -0.375."""
    return [((x + 0.5) * factor - 0.5, (y + 0.5) * factor - 0.5) for x, y in points]


def _enlarge_box(points: list[Point], factor: int) -> list[Point]:
    """A box holds the pixels of both its corners."""
    (left, top), (right, bottom) = points
    return [(left * factor, top * factor), (right * factor + (factor - 1), bottom * factor + (factor - 1))]
