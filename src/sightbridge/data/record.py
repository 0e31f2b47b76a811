"""The record: one sample as every reader yields it and as everything after the readers knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sightbridge.images.load import ImageSource
from sightbridge.text.turns import IMAGE_MARKER, Turn


@dataclass(frozen=True)
class Region:
    """A marked part of a picture: a box in pixels (left, top, right, bottom) and polygons as flat x, y lists."""

    box: tuple[float, float, float, float]
    label: str = ""
    polygons: tuple[tuple[float, ...], ...] = ()
    image: int = 0


@dataclass(frozen=True)
class Record:
    """A conversation about zero or more pictures.

    ``turns`` carry one ``<image>`` marker per picture, in the order of ``images``. ``where`` says which file and row
    the record came from, for messages. ``meta`` holds what only evaluation or reports need (question type, ...).
    """

    id: str
    images: tuple[ImageSource, ...]
    turns: tuple[Turn, ...]
    regions: tuple[Region, ...] = ()
    language: str = "en"
    meta: dict[str, Any] = field(default_factory=dict)
    where: str = ""

    def count_markers(self) -> int:
        """Number of ``<image>`` markers in all turns."""
        return sum((turn.text or "").count(IMAGE_MARKER) for turn in self.turns)
