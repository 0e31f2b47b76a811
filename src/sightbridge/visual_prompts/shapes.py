"""The eight shapes: from an area to the strokes that mark it, with ViP-LLaVA's distributions.

Lengths are given for a picture whose longer side is the anchor (336 pixels, what CLIP sees) and multiplied by
``scale``, the picture's longer side divided by the anchor. Like there, products are cut to whole pixels, and no line
is thinner than one.
"""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable
from typing import Literal, NamedTuple

from sightbridge.visual_prompts.mark import Mark, Shape
from sightbridge.visual_prompts.region import Area, Box, Point


class Stroke(NamedTuple):
    """A thing to paint: through or around ``points``, ``width`` pixels wide (0: filled).

    Boxes and ellipses have two points, their corners. A contour is a closed line painted with a square brush that
    reaches ``width`` pixels to each side. ``erase`` clears what was painted before.
    """

    kind: Literal["line", "polygon", "rectangle", "ellipse", "contour"]
    points: tuple[Point, ...]
    width: int = 0
    erase: bool = False


WIDTHS: dict[Shape, tuple[int, int, int]] = {
    "rectangle": (2, 8, 3),
    "ellipse": (2, 8, 3),
    "triangle": (2, 8, 3),
    "point": (5, 20, 8),
    "scribble": (2, 12, 3),
    "mask contour": (1, 2, 1),
    "arrow": (1, 6, 3),
}
"""Least and greatest width of a line (radius of a point), and that of the constant style.

The reference knows the constant style for rectangles and points only.
"""

WIDEST_ANGLE = math.radians(150)
"""A triangle with a wider angle looks like a line and is drawn again."""
HEAD_ANGLE = math.radians(60)
"""Between an arrow's shaft and either side of its head."""
CURVE = [((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3) for t in (step / 96 for step in range(97))]
"""Weights of the four points of a cubic Bezier curve, along the curve.

The reference takes a thousand steps, which looks the same and takes longer.
"""


def sketch(area: Area, mark: Mark, scale: float, rng: random.Random) -> list[Stroke]:
    """Return the strokes of ``mark`` on ``area``; every call draws sizes and places anew."""
    return SKETCHES[mark.shape](area, mark, scale, rng)


def _width(mark: Mark, scale: float, rng: random.Random) -> int:
    low, high, constant = WIDTHS[mark.shape]
    if mark.width is not None:
        drawn = int(mark.width * scale)
    elif mark.constant:
        drawn = int(constant * scale)
    else:
        drawn = rng.randint(int(low * scale), int(high * scale))
    return max(drawn, 1)


def _rectangle(area: Area, mark: Mark, scale: float, rng: random.Random) -> list[Stroke]:
    return [Stroke("rectangle", _corners(area.box), _width(mark, scale, rng))]


def _ellipse(area: Area, mark: Mark, scale: float, rng: random.Random) -> list[Stroke]:
    left, top, right, bottom = area.bounds
    stretch_x, stretch_y = (1.0, 1.0) if mark.constant else (rng.uniform(1, 1.5), rng.uniform(1, 1.5))
    x, y = (left + right) / 2, (top + bottom) / 2
    half_width, half_height = stretch_x * (right - left) / 2, stretch_y * (bottom - top) / 2
    around = (x - half_width, y - half_height, x + half_width, y + half_height)
    return [Stroke("ellipse", _corners(around), _width(mark, scale, rng))]


def _triangle(area: Area, mark: Mark, scale: float, rng: random.Random) -> list[Stroke]:
    width = _width(mark, scale, rng)
    left, top, right, bottom = area.bounds
    points: tuple[Point, ...] = ()
    if area.strokes and len(area.strokes[0]) >= 3:
        points = area.strokes[0][:3]
        return [Stroke("line", (*points, *points[:2]), width)]
    for _ in range(100):
        points = (area.draw_point(rng), area.draw_point(rng), area.draw_point(rng))
        if _widest_angle(points) <= WIDEST_ANGLE:
            break
    else:  # so thin that hardly any triangle in it looks like one
        points = ((left, bottom), ((left + right) / 2, top), (right, bottom))
    return [Stroke("line", (*points, *points[:2]), width)]  # one side twice, so that all corners are joints


def _point(area: Area, mark: Mark, scale: float, rng: random.Random) -> list[Stroke]:
    """A dot near the middle of one polygon. The reference crashes without polygons; here the box will do."""
    radius = _width(mark, scale, rng)
    area = area.one(rng)
    left, top, right, bottom = area.bounds
    for _ in range(10):
        x = rng.gauss((left + right) / 2, math.sqrt((right - left) / 8))
        y = rng.gauss((top + bottom) / 2, math.sqrt((bottom - top) / 8))
        if area.contains((x, y)):
            break
    else:  # the middle of a ring or a crescent is not a part of it
        x, y = area.draw_point(rng)
    stretch = rng.uniform(0.5, 2) if not mark.constant and rng.random() < 0.5 else 1.0
    half_width, half_height = radius * stretch, radius / stretch
    return [Stroke("ellipse", _corners((x - half_width, y - half_height, x + half_width, y + half_height)))]


def _scribble(area: Area, mark: Mark, scale: float, rng: random.Random) -> list[Stroke]:
    width = _width(mark, scale, rng)
    if area.strokes:
        return [Stroke("line", points, width) for points in area.strokes]
    area = area.one(rng)
    xs, ys = zip(*(area.draw_point(rng) for _ in range(4)), strict=True)
    points = tuple((_weigh(weights, xs), _weigh(weights, ys)) for weights in CURVE)
    return [Stroke("line", points, width)]


def _mask_contour(area: Area, mark: Mark, scale: float, rng: random.Random) -> list[Stroke]:
    width = _width(mark, scale, rng)
    return [Stroke("contour", ring, width) for ring in (*_rings(area), *area.holes)]


def _mask(area: Area, mark: Mark, scale: float, rng: random.Random) -> list[Stroke]:
    strokes = [Stroke("polygon", ring) for ring in _rings(area)]
    strokes += [Stroke("polygon", ring, erase=True) for ring in area.holes]
    return sorted(strokes, key=_extent, reverse=True)  # a hole before the island that lies in it


def _arrow(area: Area, mark: Mark, scale: float, rng: random.Random) -> list[Stroke]:
    """A shaft that ends at the target, straight or bent, and a head there, filled or of two lines."""
    width = _width(mark, scale, rng)
    if area.strokes and area.strokes[0][0] != area.strokes[0][-1]:
        return _arrow_along(area.strokes[0][0], area.strokes[0][-1], width, scale)
    left, top, right, bottom = area.box
    jitter_x, jitter_y = rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25)
    target = ((left + right) / 2 + jitter_x * (right - left), (top + bottom) / 2 + jitter_y * (bottom - top))
    angle = rng.uniform(0, 2 * math.pi)
    length = rng.uniform(0.8 * min(right - left, bottom - top), 50 * scale)
    head = max(rng.uniform(0.2, 0.5) * length, int(6 * scale), 1)
    # The least head is longer than some drawn lengths, for which the reference's shaft comes out on the other side.
    tail = _away(target, angle, max(length - head, head))
    filled = rng.random() < 0.5
    tip = _away(target, angle, head / 2) if filled else target  # under a filled head no shaft is seen
    shaft = (tip, tail)
    if rng.random() < 0.5:
        bend = 5 * int(scale)
        middle = ((tip[0] + tail[0]) / 2 + rng.uniform(-bend, bend), (tip[1] + tail[1]) / 2 + rng.uniform(-bend, bend))
        shaft = (tip, middle, tail)
    sides = (_away(target, angle - HEAD_ANGLE, head), target, _away(target, angle + HEAD_ANGLE, head))
    return [Stroke("line", shaft, width), Stroke("polygon", sides) if filled else Stroke("line", sides, width)]


def _arrow_along(tail: Point, target: Point, width: int, scale: float) -> list[Stroke]:
    """An arrow that somebody drew: straight, its head filled and not longer than those that models were trained on."""
    length, angle = math.dist(tail, target), math.atan2(tail[1] - target[1], tail[0] - target[0])
    head = min(max(0.35 * length, 6 * scale, 1), 12 * scale)
    sides = (_away(target, angle - HEAD_ANGLE, head), target, _away(target, angle + HEAD_ANGLE, head))
    return [Stroke("line", (_away(target, angle, head / 2), tail), width), Stroke("polygon", sides)]


SKETCHES: dict[Shape, Callable[[Area, Mark, float, random.Random], list[Stroke]]] = {
    "rectangle": _rectangle,
    "ellipse": _ellipse,
    "triangle": _triangle,
    "point": _point,
    "scribble": _scribble,
    "mask contour": _mask_contour,
    "mask": _mask,
    "arrow": _arrow,
}
"""By shape: ``(area, mark, scale, rng)`` to strokes."""


def _corners(box: Box) -> tuple[Point, Point]:
    return (box[0], box[1]), (box[2], box[3])


def _rings(area: Area) -> tuple[tuple[Point, ...], ...]:
    left, top, right, bottom = area.box
    return area.polygons or (((left, top), (right, top), (right, bottom), (left, bottom)),)


def _extent(stroke: Stroke) -> float:
    xs, ys = zip(*stroke.points, strict=True)
    return (max(xs) - min(xs)) * (max(ys) - min(ys))


def _away(start: Point, angle: float, distance: float) -> Point:
    return start[0] + distance * math.cos(angle), start[1] + distance * math.sin(angle)


def _weigh(weights: tuple[float, ...], values: tuple[float, ...]) -> float:
    return sum(map(operator.mul, weights, values))


def _widest_angle(points: tuple[Point, ...]) -> float:
    """The widest angle of a triangle in radians; that of three points of which two are one counts as straight."""
    a, b, c = sorted(math.dist(points[i], points[i - 1]) for i in range(3))
    if a == 0:
        return math.pi
    return math.acos(max(-1.0, min(1.0, (a * a + b * b - c * c) / (2 * a * b))))
