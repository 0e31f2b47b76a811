"""The region: a part of a picture that somebody speaks of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """A part of a picture.

    ``box`` is left, top, right, bottom in pixels of the picture as it is stored. ``polygons`` are flat x, y lists whose
    union is the region's outline, if it is known. ``image`` says which of a record's pictures it is a part of.
    """

    box: tuple[float, float, float, float]
    label: str = ""
    polygons: tuple[tuple[float, ...], ...] = ()
    image: int = 0
