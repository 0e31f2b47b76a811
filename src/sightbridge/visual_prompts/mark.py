"""The mark: a region made visible by a shape and a colour, and the words that point at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sightbridge.visual_prompts.region import Region

Shape = Literal["rectangle", "ellipse", "triangle", "point", "scribble", "mask contour", "mask", "arrow"]

PREPOSITIONS: dict[Shape, str] = {
    "rectangle": "within",
    "ellipse": "within",
    "triangle": "with",
    "point": "at",
    "scribble": "with",
    "mask contour": "with",
    "mask": "with",
    "arrow": "pointed to by",
}
"""How a sentence refers to what each shape marks (ViP-LLaVA)."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "lime": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "fuchsia": (255, 0, 255),
    "aqua": (0, 255, 255),
    "orange": (255, 165, 0),
    "purple": (128, 0, 128),
    "gold": (255, 215, 0),
}
"""The colours that are called by name (ViP-LLaVA)."""


@dataclass(frozen=True)
class Mark:
    """A region made visible.

    ``colour_name`` is None for a colour that is not to be named. ``width`` is a line's width (a point's radius) in
    pixels of a picture whose longer side is the anchor; ``alpha`` is the opacity, 0 to 255; None draws either from
    ViP-LLaVA's distribution. ``constant`` is its constant style: a fixed width and no random stretch.
    """

    region: Region
    shape: Shape = "rectangle"
    colour: tuple[int, int, int] = (255, 0, 0)
    colour_name: str | None = "red"
    width: float | None = None
    alpha: int | None = None
    constant: bool = False

    @property
    def noun(self) -> str:
        """``red rectangle``, or ``rectangle`` if the colour has no name."""
        return f"{self.colour_name} {self.shape}" if self.colour_name else self.shape

    @property
    def phrase(self) -> str:
        """What points at the region in a sentence: ``within the red rectangle``, ``pointed to by the arrow``."""
        return self.in_words()

    def in_words(self, article: bool = True) -> str:
        """The phrase, with ``the`` or without: ``within red rectangle``."""
        return f"{PREPOSITIONS[self.shape]} the {self.noun}" if article else f"{PREPOSITIONS[self.shape]} {self.noun}"
