"""How regions are made visible: drawing a shape and a colour for each, as ViP-LLaVA does for its training data."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from sightbridge.errors import DataError
from sightbridge.visual_prompts.mark import COLOURS, SHAPES, Colour, Mark, Shape
from sightbridge.visual_prompts.region import Region


class Look(NamedTuple):
    """What a mark looks like; a colour without a name is not spoken of."""

    shape: Shape
    colour_name: str | None
    colour: Colour


class Wish(NamedTuple):
    """What an annotation asks of a mark; ``None`` leaves it to be drawn."""

    shape: Shape | None = None
    colour: tuple[Colour, str | None] | None = None
    width: float | None = None
    alpha: int | None = None

    @property
    def is_certain(self) -> bool:
        """Whether nothing that is spoken of is left to be drawn."""
        return self.shape is not None and self.colour is not None


def random_marks(
    regions: Sequence[Region], shapes: Sequence[Shape], rng: random.Random, *, constant: bool = False
) -> tuple[Mark, ...]:
    """Return a mark for each of ``regions``, of random shapes and colours that sentences can tell apart.

    See ``draw_apart``. Raises ``DataError`` if there is no shape to choose from.
    """
    if not shapes:
        raise DataError(f"there is no shape to choose from. Known: {', '.join(SHAPES)}.")
    return make_marks(regions, draw_apart(rng, shapes, [Wish()] * len(regions)), constant=constant)


def draw_apart(rng: random.Random, shapes: Sequence[Shape], wishes: Sequence[Wish]) -> list[Look]:
    """Draw looks of which no two are alike, so that a phrase points at one of them: those of VCR, Flickr30k and V7W.

    Marks of one shape get different colours by name, as long as there are any; the only one of its shape gets a
    colour by name as often as not.
    """
    drawn = rng.choices(shapes, k=len(wishes))
    chosen: list[Shape] = [wish.shape or shape for wish, shape in zip(wishes, drawn, strict=True)]
    counts = Counter(chosen)
    taken = {(shape, wish.colour[1]) for shape, wish in zip(chosen, wishes, strict=True) if wish.colour}
    looks = []
    for shape, wish in zip(chosen, wishes, strict=True):
        if wish.colour:
            colour, name = wish.colour
        elif counts[shape] > 1:
            name, colour = _draw_named(rng, [name for name in COLOURS if (shape, name) not in taken])
        else:
            name, colour = _draw_named(rng, list(COLOURS) if rng.choice([True, False]) else [])
        taken.add((shape, name))
        looks.append(Look(shape, name, colour))
    return looks


def draw_pair(rng: random.Random, shapes: Sequence[Shape], count: int, exact: bool) -> list[Look]:
    """Draw looks as for RefCOCOg and Visual Genome: a colour by name as often as not, or, if a subject and its object
    have the same shape, two different ones by name.

    ``exact``: give every mark the colour of the first where shapes differ, as the original does: it draws a colour
    only until there is one.
    """
    chosen: list[Shape] = [rng.choice(shapes) for _ in range(count)]
    must_differ = count > 1 and len(set(chosen)) == 1
    looks: list[Look] = []
    for shape in chosen:
        name, colour = (looks[-1].colour_name, looks[-1].colour) if exact and looks else (None, None)
        while colour is None or (must_differ and colour in [look.colour for look in looks]):
            # The odds are drawn even where they are settled, as the original does.
            unnamed = rng.random() < (0 if must_differ else 0.5)
            name, colour = _draw_named(rng, [] if unnamed else list(COLOURS))
        looks.append(Look(shape, name, colour))
    return looks


def _draw_named(rng: random.Random, names: Sequence[str]) -> tuple[str | None, Colour]:
    """One of ``names`` and its colour, or any colour at all if there are none."""
    if not names:
        return None, (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))
    name = rng.choice(names)
    return name, COLOURS[name]


def make_marks(
    regions: Sequence[Region], looks: Sequence[Look], *, wishes: Sequence[Wish] = (), **style: Any
) -> tuple[Mark, ...]:
    """Give regions their looks, and the widths and alphas that were asked for; ``style`` is said of all marks."""
    wishes = wishes or [Wish()] * len(regions)
    return tuple(
        Mark(region, *look_fields(look), **({"width": wish.width, "alpha": wish.alpha} | style))
        for region, look, wish in zip(regions, looks, wishes, strict=True)
    )


def look_fields(look: Look) -> tuple[Shape, Colour, str | None]:
    """Shape, colour and its name in the order that a mark has them."""
    return look.shape, look.colour, look.colour_name
