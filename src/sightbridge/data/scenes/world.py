"""What a scene is, and how one is drawn at random from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

ObjectSet = Literal["shapes", "digits"]

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star")
DIGITS = tuple(str(digit) for digit in range(10))
GRID = 3
"""Cells per side; a position is a cell index in reading order, 0 = top left, 8 = bottom right."""
POSITIONS = GRID * GRID
MAX_OBJECTS = 4

HELD_OUT_VARIANT = 2**30

Pair = tuple[str, str]
"""A kind and a colour."""

NEW_COMBINATIONS: dict[ObjectSet, frozenset[Pair]] = {
    "shapes": frozenset({("circle", "purple"), ("square", "yellow"), ("triangle", "blue"), ("star", "red")}),
    "digits": frozenset({(digit, COLOURS[int(digit) % len(COLOURS)]) for digit in DIGITS}),
}
"""Pairs that no training picture of a connector shows: what is asked about them measures composition."""


@dataclass(frozen=True)
class SceneObject:
    """One thing in a picture. ``variant`` seeds the jitter of the drawing and picks the scan of a digit.

    Variants of ``HELD_OUT_VARIANT`` and above use scans that no lower variant uses.
    """

    kind: str
    colour: str
    position: int
    variant: int = 0

    @property
    def pair(self) -> Pair:
        """Kind and colour."""
        return self.kind, self.colour


@dataclass(frozen=True)
class Scene:
    """Up to ``MAX_OBJECTS`` things in different cells, in reading order. ``seed`` fixes background and jitter."""

    objects: tuple[SceneObject, ...]
    object_set: ObjectSet
    seed: int

    def count(self, kind: str | None = None, colour: str | None = None) -> int:
        """How many objects have this kind and this colour (``None`` = any)."""
        return sum(kind in (None, o.kind) and colour in (None, o.colour) for o in self.objects)


def kinds_of(object_set: ObjectSet) -> tuple[str, ...]:
    """The kinds that a set of pictures knows."""
    return SHAPES if object_set == "shapes" else DIGITS


def all_pairs(object_set: ObjectSet) -> list[Pair]:
    """Every kind in every colour."""
    return [(kind, colour) for kind in kinds_of(object_set) for colour in COLOURS]


def sample_scene(
    rng: random.Random,
    object_set: ObjectSet = "shapes",
    *,
    exclude: frozenset[Pair] = frozenset(),
    require: frozenset[Pair] = frozenset(),
    held_out: bool = False,
) -> Scene:
    """Draw 1 to 4 objects in different cells.

    ``exclude``: pairs that must not occur. ``require``: at least one of these pairs occurs. A kind or a colour is
    repeated more often than chance would (otherwise counts above 1 hardly exist). ``held_out``: digits are scans that
    are kept for evaluation.
    """
    pairs = [pair for pair in all_pairs(object_set) if pair not in exclude]
    chosen = [rng.choice(sorted(require))] if require else []
    for _ in range(rng.randint(1, MAX_OBJECTS) - len(chosen)):
        if chosen and rng.random() < 0.4:
            kind, colour = rng.choice(chosen)
            keep = rng.randrange(3)  # repeat the kind, the colour, or both
            alike = [p for p in pairs if (keep == 1 or p[0] == kind) and (keep == 0 or p[1] == colour)]
            chosen.append(rng.choice(alike or pairs))
        else:
            chosen.append(rng.choice(pairs))
    cells = sorted(rng.sample(range(POSITIONS), len(chosen)))
    rng.shuffle(chosen)
    objects = tuple(
        SceneObject(kind, colour, cell, rng.randrange(HELD_OUT_VARIANT) + held_out * HELD_OUT_VARIANT)
        for (kind, colour), cell in zip(chosen, cells, strict=True)
    )
    return Scene(objects, object_set, rng.randrange(2**31))
