"""The record: one sample as every reader yields it and as everything after the readers knows it."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sightbridge.images.load import ImageSource, describe_source
from sightbridge.text.turns import IMAGE_MARKER, Turn
from sightbridge.visual_prompts import Mark, Region


class Realised(NamedTuple):
    """A conversation and the marks that it speaks of, once everything about them is drawn."""

    turns: tuple[Turn, ...]
    marks: tuple[Mark, ...]


class Plan(ABC):
    """What a record's conversation and marks are drawn from: shapes, colours, sentences."""

    @abstractmethod
    def realise(self, rng: random.Random) -> Realised:
        """Draw both from ``rng`` alone, so that the words always say what is on the picture."""


@dataclass(frozen=True, repr=False)
class Record:
    """A conversation about zero or more pictures.

    ``turns`` carry one ``<image>`` marker per picture, in the order of ``images``. ``marks`` are drawn on the pictures
    when they are opened. With a ``plan``, training draws turns and marks anew in every epoch; the record's own are
    those that are seen everywhere else. ``where`` says which file and row the record came from, for messages. ``meta``
    holds what only evaluation or reports need (question type, ...).
    """

    id: str
    images: tuple[ImageSource, ...]
    turns: tuple[Turn, ...]
    regions: tuple[Region, ...] = ()
    language: str = "en"
    meta: dict[str, Any] = field(default_factory=dict)
    where: str = ""
    marks: tuple[Mark, ...] = ()
    plan: Plan | None = None

    def count_markers(self) -> int:
        """Number of ``<image>`` markers in all turns."""
        return sum((turn.text or "").count(IMAGE_MARKER) for turn in self.turns)

    def __repr__(self) -> str:
        """Show the record as one would write it down, a line for each thing that it has.

        >>> Record("1", ("bus.jpg",), (Turn("user", "<image>"), Turn("assistant", "A red bus.")), meta={"n": 3})
        Record '1'
          image      bus.jpg
          user       <image>
          assistant  A red bus.
          n          3
        """
        lines: list[tuple[str, object]] = [("image", describe_source(source)) for source in self.images]
        lines += [(turn.role, "(to be answered)" if turn.text is None else turn.text) for turn in self.turns]
        lines += [("region", region) for region in self.regions]
        lines += [("mark", describe_mark(mark, len(self.images))) for mark in self.marks]
        lines += [("language", self.language)] if self.language != "en" else []
        lines += self.meta.items()
        lines += [("from", self.where)] if self.where else []
        width = max([10, *(len(name) for name, _ in lines)])
        indent = "\n" + " " * (width + 3)
        written = [f"\n  {name:<{width}} {str(value).replace(chr(10), indent)}" for name, value in lines]
        return f"Record '{self.id}'" + "".join(written)


def describe_mark(mark: Mark, pictures: int = 1) -> str:
    """Say what is drawn and where: ``red rectangle at 10, 20, 110, 80``."""
    box = ", ".join(f"{side:g}" for side in mark.region.box)
    place = box if any(mark.region.box) else f"the box of '{mark.region.label}', kept in another file"
    return f"{mark.noun} at {place}" + (f", picture {mark.region.image + 1}" if pictures > 1 else "")
