"""Marks drawn at random, as ViP-LLaVA does for its training data."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from sightbridge.errors import DataError
from sightbridge.visual_prompts.mark import COLOURS, SHAPES, Colour, Mark, Shape
from sightbridge.visual_prompts.region import Region


def random_mark(
    region: Region, shapes: Sequence[Shape], rng: random.Random, *, unnamed: float = 0.5, constant: bool = False
) -> Mark:
    """Return a mark on ``region`` of a random shape of ``shapes``.

    Its colour is, with probability ``unnamed``, any colour, which its phrase leaves out; else one of the nine.
    """
    return random_marks([region], shapes, rng, unnamed=unnamed, constant=constant)[0]


def random_marks(
    regions: Sequence[Region],
    shapes: Sequence[Shape],
    rng: random.Random,
    *,
    unnamed: float = 0.5,
    constant: bool = False,
    inherit_colour: bool = False,
) -> list[Mark]:
    """Return a mark for each of ``regions``, of random shapes, that sentences can tell apart.

    Shapes are drawn with replacement. Marks of one shape get named colours, all different (any colours once the nine
    are used up); a shape that only one mark has gets any colour with probability ``unnamed``, else one of the nine.
    ``inherit_colour`` keeps what the reference does to the subjects and objects of ``vg_rel``: marks of different
    shapes all get the first one's colour.
    """
    if not shapes:
        raise DataError(f"there is no shape to choose from. Known: {', '.join(SHAPES)}.")
    drawn: list[Shape] = [rng.choice(shapes) for _ in regions]
    counts = Counter(drawn)
    palettes = {shape: rng.sample(list(COLOURS), len(COLOURS)) for shape in counts if counts[shape] > 1}
    marks: list[Mark] = []
    for region, shape in zip(regions, drawn, strict=True):
        if inherit_colour and marks and counts[shape] == 1:
            colour, name = marks[0].colour, marks[0].colour_name
        elif shape in palettes:
            name = palettes[shape].pop() if palettes[shape] else None
            colour = COLOURS[name] if name else _any_colour(rng)
        else:
            name = None if rng.random() < unnamed else rng.choice(list(COLOURS))
            colour = COLOURS[name] if name else _any_colour(rng)
        marks.append(Mark(region, shape, colour, name, constant=constant))
    return marks


def _any_colour(rng: random.Random) -> Colour:
    return rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)
