"""What rows of region data say about boxes, polygons and marks, checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from sightbridge.data.marks import StoredRegion
from sightbridge.data.readers.rows import Row, take
from sightbridge.data.regions.sentences import Words
from sightbridge.data.regions.vcr import Choice
from sightbridge.errors import DataError
from sightbridge.visual_prompts import Mark, Region, parse_colour, region_from_rle
from sightbridge.visual_prompts.looks import Wish

Box = tuple[float, float, float, float]
Flat = tuple[tuple[float, ...], ...]
Outline = tuple[Flat, Flat]
"""Polygons and holes."""
NO_OUTLINE: Outline = ((), ())

BOX_KEYS = ("bbox", "bboxes")
POLYGON_KEYS = ("segmentation", "segmentations")
WISH_KEYS = ("shape", "color", "colour", "width", "alpha")
PICTURE_KEY = "bbox_image"
REGION_KEYS = (*BOX_KEYS, *POLYGON_KEYS, *WISH_KEYS, PICTURE_KEY)
"""Keys of a row about its regions."""

BOX = "[left, top, right, bottom] in pixels"
LARGEST = sys.float_info.max
"""JSON may write whole numbers that are larger, and NaN, which is not between anything."""
MAX_OPTIONS = 26
MAX_POINTS = 100_000
"""Bound on the points of a region's polygons: outlines have hundreds, and a million take a minute to fill."""


@dataclass(frozen=True)
class RegionRow:
    """A row, where it is, and the folder that names of files in it are looked up in. Every method takes what a key
    holds and raises ``DataError`` naming file, row and key if that is not what it should be."""

    row: Row
    where: str
    folder: Path

    def text(self, key: str) -> str:
        """A text that says something; a number is taken as its digits."""
        value = str(take(self.row, key, (str, int), self.where, "a text")).strip()
        if not value:
            raise self.wrong(key, "expected a text, got an empty one")
        return value

    def regions(self, pictures: int = 1) -> tuple[Region, ...]:
        """Regions with boxes, polygons, and the pictures that they are on, of which there are ``pictures``."""
        boxes = self._boxes()
        places = self._for_each(PICTURE_KEY, len(boxes)) or [0] * len(boxes)
        for place in places:
            if not isinstance(place, int) or not 0 <= place < pictures:
                raise self.wrong(PICTURE_KEY, f"expected the number of a picture, 0 to {pictures - 1}, got {place!r}")
        return tuple(
            Region(box, polygons=polygons, image=place, holes=holes)
            for box, place, (polygons, holes) in zip(boxes, places, self._outlines(len(boxes)), strict=True)
        )

    def _boxes(self) -> list[Box]:
        """The boxes of ``bbox`` (one box, or several) or ``bboxes``."""
        if all(key in self.row for key in BOX_KEYS):
            raise self.wrong("bbox", "there is 'bboxes' too; give one of them")
        key = "bbox" if "bbox" in self.row else "bboxes"
        value = take(self.row, key, (list,), self.where, f"a box {BOX}, or a list of them")
        is_one = bool(value) and not isinstance(value[0], list)
        return [self.box(box, key) for box in ([value] if is_one else value)]

    def box(self, value: Any, key: str) -> Box:
        """One box."""
        if not _are_numbers(value) or len(value) != 4:
            raise self.wrong(key, f"expected a box {BOX}, got {_shortened(value)}")
        left, top, right, bottom = map(float, value)
        if right < left or bottom < top:
            raise self.wrong(
                key, f"the box {value} ends before it begins. Expected {BOX}, not left, top, width, height"
            )
        return left, top, right, bottom

    def _outlines(self, count: int) -> list[Outline]:
        """Polygons and holes of each of ``count`` regions; a region without may have ``null``."""
        key = next((key for key in POLYGON_KEYS if self.row.get(key) is not None), None)
        if key is None:
            return [NO_OUTLINE] * count
        value = take(self.row, key, (list, dict), self.where, "polygons [x1, y1, x2, y2, ...] of every box")
        if count == 1 and (isinstance(value, dict) or (key == "segmentation" and _depth(value) < 3)):
            value = [value]  # said of the only box, without a list around it
        if len(value) != count:
            raise self.wrong(key, f"expected the polygons of {_boxes(count)}, got those of {len(value)}")
        return [self._outline(one, key) for one in value]

    def _outline(self, value: Any, key: str) -> Outline:
        if isinstance(value, dict):
            try:
                region = region_from_rle(value)
            except DataError as error:
                raise DataError(f"{self.where}, key '{key}': {error}") from error
            return region.polygons, region.holes
        is_flat = bool(value) and _are_numbers(value)
        polygons: Any = [] if value is None else [value] if is_flat else value
        if not isinstance(polygons, list) or not all(_are_numbers(one) and len(one) % 2 == 0 for one in polygons):
            raise self.wrong(key, "expected polygons [x1, y1, x2, y2, ...] in pixels, COCO's run lengths, or null")
        if (points := sum(map(len, polygons)) // 2) > MAX_POINTS:
            raise self.wrong(key, f"a region of {points:,} points is more than the limit of {MAX_POINTS:,}")
        return tuple(tuple(map(float, polygon)) for polygon in polygons), ()

    def wishes(self, count: int) -> tuple[Wish, ...]:
        """What is asked of each of ``count`` marks: one value for all, or a list of one for each."""
        if "color" in self.row and "colour" in self.row:
            raise self.wrong("colour", "there is 'color' already; give one of them")
        shapes, widths, alphas = (self._for_each(key, count) for key in ("shape", "width", "alpha"))
        key = "colour" if "colour" in self.row else "color"
        value = self.row.get(key)
        is_rgb = _are_numbers(value) and len(value) == 3
        colours = [value] * count if is_rgb else self._for_each(key, count)
        return tuple(
            self._wish(*(values[place] if values else None for values in (shapes, colours, widths, alphas)))
            for place in range(count)
        )

    def _wish(self, shape: Any, colour: Any, width: Any, alpha: Any) -> Wish:
        try:
            if isinstance(colour, list):
                colour = ",".join(map(str, colour))
            wish = Wish(shape, None if colour is None else parse_colour(str(colour)), width, alpha)
            for key, value in (("width", width), ("alpha", alpha)):
                if value is not None and not _are_numbers([value]):
                    raise DataError(f"expected a number as '{key}', got {value!r}.")
            if alpha is not None and not isinstance(alpha, int):
                raise DataError(f"expected a whole number from 0, invisible, to 255 as 'alpha', got {alpha!r}.")
            Mark(Region((0, 0, 0, 0)), "rectangle" if shape is None else shape, width=width, alpha=alpha)
        except DataError as error:
            raise DataError(f"{self.where}: {error}") from error
        return wish

    def _for_each(self, key: str, count: int) -> list[Any]:
        """``count`` values of a key that holds one for all or a list of them; empty if it is not there."""
        value = self.row.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            return [value] * count
        if len(value) != count:
            raise self.wrong(key, f"expected one value for all, or one for each of {_boxes(count)}, got {len(value)}")
        return value

    def groups(self) -> tuple[tuple[Region, ...], ...]:
        """Flickr30k: a list of boxes for every phrase."""
        groups = take(self.row, "bbox", (list,), self.where, "a list of boxes for every phrase")
        if not groups or not all(isinstance(group, list) for group in groups):
            raise self.wrong("bbox", f"expected a list of boxes for every phrase, got {groups!r}")
        return tuple(tuple(Region(self.box(box, "bbox")) for box in group) for group in groups)

    def names(self) -> tuple[str, ...]:
        """VCR: what the objects are."""
        names = take(self.row, "class_names", (list,), self.where, "a list of names")
        if not all(isinstance(name, str) for name in names):
            raise self.wrong("class_names", f"expected a list of names, got {names!r}")
        return tuple(names)

    def stored_regions(self) -> tuple[Region, ...]:
        """VCR: the objects, whose places are in the file that ``meta_dir`` names."""
        name = take(self.row, "meta_dir", (str,), self.where, "the name of a JSON file of boxes")
        # The published rows begin with "./dataset", which stands for the folder of pictures.
        file = self.folder / name.removeprefix("./dataset").lstrip("/") if name.startswith("./dataset") else None
        return tuple(
            StoredRegion((0, 0, 0, 0), label, file=file or self.folder / name, number=number)
            for number, label in enumerate(self.names())
        )

    def words(self, key: str, value: Any = None) -> Words:
        """VCR: a sentence as a list of words and of lists of numbers of objects."""
        value = take(self.row, key, (list,), self.where, "a list of words") if value is None else value
        count = len(self.names())
        if not isinstance(value, list) or not value:
            raise self.wrong(key, f"expected a list of words and lists of objects, got {value!r}")
        for part in value:
            if isinstance(part, str):
                continue
            if not isinstance(part, list) or not part or not all(type(n) is int and 0 <= n < count for n in part):
                raise self.wrong(key, f"expected words and lists of objects, 0 to {count - 1}, got {part!r}")
        return tuple(part if isinstance(part, str) else tuple(part) for part in value)

    def choice(self, key: str, label_key: str) -> Choice:
        """VCR: the options of a question and the number of the right one."""
        options = take(self.row, key, (list,), self.where, "a list of sentences")
        return Choice(tuple(self.words(key, option) for option in options), self.label(label_key, len(options)))

    def label(self, key: str, count: int) -> int:
        """The number of the right one of ``count`` options."""
        label = take(self.row, key, (int,), self.where, "the number of an option")
        if not 0 <= label < min(count, MAX_OPTIONS):
            raise self.wrong(key, f"there is no option {label}: there are {count}, counted from 0")
        return label

    def wrong(self, key: str, what: str) -> DataError:
        """The error to raise about ``key``."""
        return DataError(f"{self.where}, key '{key}': {what}.")


def _are_numbers(value: Any) -> TypeGuard[list[float]]:
    """Whether it is a list of finite numbers."""
    return isinstance(value, list) and all(
        isinstance(n, int | float) and not isinstance(n, bool) and -LARGEST <= n <= LARGEST for n in value
    )


def _shortened(value: Any) -> str:
    said = repr(value)
    return said if len(said) < 200 else f"{said[:200]}..."


def _boxes(count: int) -> str:
    return f"{count} box{'es' * (count != 1)}"


def _depth(value: Sequence[Any]) -> int:
    """How many lists are around the first number."""
    return 1 + _depth(value[0]) if value and isinstance(value[0], list) else 1
