"""The region: a part of a picture that somebody speaks of, and where it lies on a picture of a certain size."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sightbridge.errors import DataError

Box = tuple[float, float, float, float]
Point = tuple[float, float]
Ring = tuple[Point, ...]

TRIES = 50
"""How often a point is drawn within the bounds of polygons before any point of the bounds will do (ViP-LLaVA)."""

SPECK = 0.1
"""A polygon whose bounds are smaller than this part of the largest one's is a speck."""


@dataclass(frozen=True)
class Region:
    """A part of a picture.

    ``box`` is left, top, right, bottom in pixels of the picture as it is stored. ``polygons`` are flat x, y lists whose
    union is the region, less ``holes``, if its outline is known. ``strokes`` are lines, flat x, y lists too, that
    somebody drew by hand: a ``scribble`` shows them, an ``arrow`` runs along the first one from tail to tip, a
    ``triangle`` has its first three points as corners. ``image`` says which of a record's pictures is meant.
    """

    box: Box
    label: str = ""
    polygons: tuple[tuple[float, ...], ...] = ()
    image: int = 0
    holes: tuple[tuple[float, ...], ...] = ()
    strokes: tuple[tuple[float, ...], ...] = ()


def region_from_polygons(polygons: Sequence[Sequence[float]], label: str = "", image: int = 0) -> Region:
    """Return the region inside ``polygons``, flat x, y lists; its box is their bounds."""
    kept = tuple(tuple(polygon) for polygon in polygons)
    rings = [ring for polygon in kept if (ring := _to_ring(polygon, least=3))]
    if not rings:
        raise DataError("a polygon needs at least three points: x1,y1,x2,y2,x3,y3.")
    return Region(bounds_of(rings), label, kept, image)


def region_from_strokes(strokes: Sequence[Sequence[float]], label: str = "", image: int = 0) -> Region:
    """Return the region under ``strokes``, flat x, y lists of lines drawn by hand; its box is their bounds."""
    kept = tuple(tuple(stroke) for stroke in strokes)
    rings = [ring for stroke in kept if (ring := _to_ring(stroke, least=1))]
    if not rings:
        raise DataError("a stroke needs at least one point: x1,y1,x2,y2,...")
    return Region(bounds_of(rings), label, image=image, strokes=kept)


@dataclass(frozen=True)
class Area:
    """A region on a picture: ``box`` lies within the picture, and the rings have three points or more.

    Without ``polygons`` the area is the box.
    """

    box: Box
    polygons: tuple[Ring, ...] = ()
    holes: tuple[Ring, ...] = ()
    strokes: tuple[Ring, ...] = ()

    @property
    def bounds(self) -> Box:
        """Left, top, right, bottom of the polygons, or of the box."""
        return bounds_of(self.polygons) if self.polygons else self.box

    def one(self, rng: random.Random) -> Area:
        """This area with only one of its polygons, any that is no speck beside the largest.

        The reference takes specks too, so that a mark may be as good as invisible.
        """
        if not self.polygons:
            return self
        extents = [_extent(ring) for ring in self.polygons]
        pieces = [ring for ring, extent in zip(self.polygons, extents, strict=True) if extent >= max(extents) * SPECK]
        return replace(self, polygons=(rng.choice(pieces),))

    def contains(self, point: Point) -> bool:
        """Whether ``point`` lies inside; an island within a hole counts again."""
        if not self.polygons:
            left, top, right, bottom = self.box
            return left <= point[0] <= right and top <= point[1] <= bottom
        return sum(_inside(ring, point) for ring in self.polygons) > sum(_inside(ring, point) for ring in self.holes)

    def draw_point(self, rng: random.Random) -> Point:
        """A uniform random point inside, or, where ``TRIES`` points miss a thin area, anywhere in its bounds."""
        left, top, right, bottom = self.bounds
        point = (left, top)
        for _ in range(TRIES):
            point = (rng.uniform(left, right), rng.uniform(top, bottom))
            if self.contains(point):
                break
        return point


def place(region: Region, size: tuple[int, int]) -> Area:
    """Return where ``region`` lies on a picture of ``size`` (width, height).

    The box is cut to the picture. Polygons that show nothing (fewer than three points, half a point, values that are
    not finite, wholly outside the picture) are left out, so the box stands for a region without a usable one.
    Raises ``DataError`` for a box that is reversed, not finite, or wholly outside the picture.
    """
    left, top, right, bottom = region.box
    width, height = size
    if not all(map(math.isfinite, region.box)):
        raise DataError(f"the box {_listed(region.box)} holds a value that is no finite number.")
    if right < left or bottom < top:
        raise DataError(
            f"the box {_listed(region.box)} is reversed. Expected left, top, right, bottom in pixels, with right not "
            "less than left and bottom not less than top. Is it x, y, width, height?"
        )
    if right < 0 or bottom < 0 or left > width or top > height:
        raise DataError(
            f"the box {_listed(region.box)} lies outside of the picture, which has {width} x {height} pixels. "
            "Expected left, top, right, bottom in pixels of the picture as it is stored."
        )
    box = (_clamp(left, width - 1), _clamp(top, height - 1), _clamp(right, width - 1), _clamp(bottom, height - 1))
    return Area(
        box,
        _place_rings(region.polygons, size, least=3),
        _place_rings(region.holes, size, least=3),
        _place_rings(region.strokes, size, least=1),
    )


def _place_rings(flat: tuple[tuple[float, ...], ...], size: tuple[int, int], least: int) -> tuple[Ring, ...]:
    """Rings that touch the picture; points farther away than its own size are moved nearer, or drawing takes ages."""
    width, height = size
    rings = []
    for values in flat:
        ring = _to_ring(values, least)
        if ring is None:
            continue
        left, top, right, bottom = bounds_of([ring])
        if right >= 0 and bottom >= 0 and left < width and top < height:
            rings.append(tuple((_clamp(x, 2 * width, -width), _clamp(y, 2 * height, -height)) for x, y in ring))
    return tuple(rings)


def _to_ring(values: Sequence[float], least: int) -> Ring | None:
    if len(values) % 2 or len(values) < 2 * least or not all(map(math.isfinite, values)):
        return None
    return tuple(zip(values[::2], values[1::2], strict=True))


def bounds_of(rings: Sequence[Ring]) -> Box:
    """Left, top, right, bottom of all points."""
    xs, ys = zip(*(point for ring in rings for point in ring), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _extent(ring: Ring) -> float:
    left, top, right, bottom = bounds_of([ring])
    return (right - left) * (bottom - top)


def _inside(ring: Ring, point: Point) -> bool:
    """Whether a line from ``point`` to the right crosses the ring an odd number of times."""
    x, y = point
    inside = False
    for (x1, y1), (x2, y2) in zip(ring, ring[1:] + ring[:1], strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
            inside = not inside
    return inside


def _clamp(value: float, high: float, low: float = 0) -> float:
    return min(max(value, low), high)


def _listed(box: Box) -> str:
    return ",".join(f"{value:g}" for value in box)
