"""The mark: a region made visible by a shape and a colour, and the words that point at it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from sightbridge.errors import DataError, nearest
from sightbridge.visual_prompts.region import Region

Shape = Literal["rectangle", "ellipse", "triangle", "point", "scribble", "mask contour", "mask", "arrow"]
Colour = tuple[int, int, int]

SHAPES: tuple[Shape, ...] = get_args(Shape)

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

COLOURS: dict[str, Colour] = {
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
    Raises ``DataError`` for a shape, colour, width or alpha that there is not.
    """

    region: Region
    shape: Shape = "rectangle"
    colour: Colour = COLOURS["red"]
    colour_name: str | None = "red"
    width: float | None = None
    alpha: int | None = None
    constant: bool = False

    def __post_init__(self) -> None:
        """Check what may come from an annotation file."""
        if self.shape not in SHAPES:
            raise DataError(
                f"there is no shape '{self.shape}'. Known: {', '.join(SHAPES)}.{nearest(str(self.shape), list(SHAPES))}"
            )
        if len(self.colour) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in self.colour):
            raise DataError(f"the colour {self.colour} is not three whole numbers of 0 to 255.")
        if self.width is not None and not (math.isfinite(self.width) and 0 < self.width <= MAX_WIDTH):
            raise DataError(f"the width {self.width} is not above 0 and at most {MAX_WIDTH}.")
        if self.alpha is not None and not 0 <= self.alpha <= 255:
            raise DataError(f"the alpha {self.alpha} is not from 0, invisible, to 255, opaque.")

    @property
    def noun(self) -> str:
        """``red rectangle``, or ``rectangle`` if the colour has no name."""
        return f"{self.colour_name} {self.shape}" if self.colour_name else self.shape

    @property
    def phrase(self) -> str:
        """What points at the region in a sentence: ``within the red rectangle``, ``pointed to by the arrow``."""
        return self.in_words()

    def in_words(self, article: bool = True) -> str:
        """The phrase with ``the``, or without: ``within red rectangle``."""
        return f"{PREPOSITIONS[self.shape]} the {self.noun}" if article else f"{PREPOSITIONS[self.shape]} {self.noun}"


MAX_WIDTH = 336
"""No line is wider than ViP-LLaVA's whole picture."""


def parse_colour(text: str) -> tuple[Colour, str | None]:
    """Return the colour that ``text`` says (``red``, ``#ff0000``, ``255,0,0``), and its name if it is one of the nine.

    Raises ``DataError`` for anything else.
    """
    written = text.strip().lower()
    colour = COLOURS.get(written) or _from_numbers(written)
    if colour is None:
        raise DataError(
            f"there is no colour '{text}'. Expected {', '.join(COLOURS)}, #rrggbb or r,g,b."
            f"{nearest(written, list(COLOURS))}"
        )
    return colour, next((name for name, known in COLOURS.items() if known == colour), None)


def _from_numbers(text: str) -> Colour | None:
    try:
        if text.startswith("#") and len(text) == 7:
            red, green, blue = bytes.fromhex(text[1:])
        else:
            red, green, blue = (int(part) for part in text.split(","))
    except ValueError:
        return None
    return (red, green, blue) if all(0 <= part <= 255 for part in (red, green, blue)) else None
