"""The record: one sample as every reader yields it and as everything after the readers knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sightbridge.images.load import ImageSource, describe_source
from sightbridge.text.turns import IMAGE_MARKER, Turn
from sightbridge.visual_prompts import Region


@dataclass(frozen=True, repr=False)
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
        lines += [("language", self.language)] if self.language != "en" else []
        lines += self.meta.items()
        lines += [("from", self.where)] if self.where else []
        width = max([10, *(len(name) for name, _ in lines)])
        indent = "\n" + " " * (width + 3)
        written = [f"\n  {name:<{width}} {str(value).replace(chr(10), indent)}" for name, value in lines]
        return f"Record '{self.id}'" + "".join(written)
