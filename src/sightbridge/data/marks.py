"""Marks on the pictures of records: drawn anew in every epoch of training, and always alike everywhere else."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from sightbridge.data.record import Record
from sightbridge.errors import DataError, ImageError
from sightbridge.images.load import ImageSource, load_image
from sightbridge.visual_prompts import Mark, Region, draw

MAX_BYTES = 2**24
"""Bound on a file of boxes."""


@dataclass(frozen=True)
class StoredRegion(Region):
    """A region whose place is in a file beside the pictures, as VCR keeps them; it is read when the mark is drawn.

    ``file`` is a JSON object with ``boxes`` ([left, top, right, bottom, score] each) and ``segms`` (lists of polygons,
    these of [x, y] points); ``number`` says which.
    """

    file: Path = Path()
    number: int = 0

    def read(self) -> Region:
        """Look the place up. Raises ``ImageError``, as for a picture that cannot be opened, if it is not there."""
        places = _read_places(self.file)
        if self.number >= len(places):
            raise ImageError(f"{self.file}: has {len(places)} boxes, but the row speaks of number {self.number}.")
        box, polygons = places[self.number]
        return Region(box, self.label, polygons, self.image)


@lru_cache(maxsize=8)
def _read_places(file: Path) -> list[tuple[tuple[float, float, float, float], tuple[tuple[float, ...], ...]]]:
    """Boxes without their scores; polygons of four points or more, the last one first (as ViP-LLaVA takes them)."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ImageError(f"{file}: larger than the limit of {MAX_BYTES:,} bytes for a file of boxes.")
        content = json.loads(file.read_text("utf-8"))
        places = []
        for box, polygons in zip(content["boxes"], content["segms"], strict=True):
            left, top, right, bottom = map(float, box[:4])
            outline = [tuple(float(number) for point in polygon for number in point) for polygon in reversed(polygons)]
            places.append(((left, top, right, bottom), tuple(flat for flat in outline if len(flat) >= 8)))
    except OSError as error:
        raise ImageError(f"{file}: cannot read the file of boxes: {error.strerror or error}.") from error
    except (ValueError, OverflowError, RecursionError, KeyError, TypeError) as error:
        raise ImageError(f"{file}: not a file of 'boxes' and 'segms' ({type(error).__name__}: {error}).") from error
    return places


def realise(record: Record, seed: int, epoch: int) -> Record:
    """What training sees of a record in ``epoch``: without a plan the record as it is."""
    if record.plan is None:
        return record
    turns, marks = record.plan.realise(random.Random(f"plan/{seed}/{epoch}/{record.id}"))
    return replace(record, turns=turns, marks=marks, plan=None)


@dataclass(frozen=True)
class Drawing:
    """The marks of one picture and the seed of what is drawn at random about them (widths, positions, strokes)."""

    marks: tuple[Mark, ...]
    seed: str

    @property
    def name(self) -> str:
        """Equal for equal pixels on the same picture, and for no others; empty without marks."""
        if not self.marks:
            return ""
        return f"marked {hashlib.sha256(repr(self.marks).encode()).hexdigest()[:16]}/{self.seed}"

    def on(self, source: ImageSource, anchor: int) -> ImageSource:
        """Open ``source`` and draw the marks on it; without marks it is left unopened.

        ``anchor``: pixels of the picture that the model sees; line widths are in these.

        Raises ``ImageError`` for a picture that cannot be opened, or a box outside of it.
        """
        if not self.marks:
            return source
        picture = load_image(source)
        try:
            return draw(picture, [located(mark) for mark in self.marks], random.Random(self.seed), anchor=anchor)
        except DataError as error:  # the annotation does not belong to this picture
            raise ImageError(str(error)) from error


NO_MARKS = Drawing((), "")


def located(mark: Mark) -> Mark:
    """The mark with its region looked up, if that is kept in another file; raises ``ImageError`` if it is not there."""
    return replace(mark, region=mark.region.read()) if isinstance(mark.region, StoredRegion) else mark


def drawing(record: Record, position: int, training: tuple[int, int] | None = None) -> Drawing:
    """What is drawn on the picture at ``position`` of a record.

    ``training``: seed and epoch. Without them it depends on record and position alone, so that every run and every
    program sees the same.
    """
    marks = tuple(mark for mark in record.marks if mark.region.image == position)
    when = "" if training is None else f"{training[0]}/{training[1]}/"
    return Drawing(marks, f"{when}{position}/{record.id}")


def marked_pictures(record: Record, anchor: int) -> Sequence[ImageSource]:
    """A record's pictures as evaluation sees them: with marks drawn, or else as they are."""
    return [drawing(record, position).on(source, anchor) for position, source in enumerate(record.images)]
