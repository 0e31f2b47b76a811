"""Regions from masks: a picture that is light where the region is, or COCO's run lengths of one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageChops

from sightbridge.errors import DataError
from sightbridge.visual_prompts.region import Region

MAX_PIXELS = 64_000_000
"""Bound on width x height of a mask; it takes a byte for each."""
MAX_CORNERS = 200_000
"""Bound on the corners of a mask's outlines: a shape has thousands, noise has millions, which take minutes to draw."""


def region_from_mask(mask: Image.Image, label: str = "", image: int = 0) -> Region:
    """Return the region where ``mask`` is lighter than half of its lightest pixel, with exact outlines and holes.

    Raises ``DataError`` if it is black everywhere.
    """
    grey = mask.convert("L")
    lightest = grey.getextrema()[1]
    assert isinstance(lightest, int)
    inside = grey.point([255 if value > lightest / 2 else 0 for value in range(256)])
    bounds = inside.getbbox()
    if bounds is None:
        raise DataError(f"the mask of {mask.width} x {mask.height} pixels is black: it marks nothing.")
    polygons, holes = trace(inside)
    left, top, right, bottom = bounds
    return Region((left, top, right, bottom), label, polygons, image, holes)


def region_from_rle(rle: Mapping[str, Any], label: str = "", image: int = 0) -> Region:
    """Return the region of a COCO mask ``{"size": [height, width], "counts": ...}``.

    ``counts`` are run lengths, column by column, of pixels outside and inside in turn: a list of numbers, or COCO's
    string for one (https://github.com/cocodataset/cocoapi, ``maskApi.c``). Raises ``DataError`` for anything else.
    """
    return region_from_mask(decode_rle(rle), label, image)


def decode_rle(rle: Mapping[str, Any]) -> Image.Image:
    """Return the mask, of mode L with 255 inside, of run lengths as ``region_from_rle`` takes them."""
    if not isinstance(rle, Mapping):
        raise DataError("run lengths are given as {'size': [height, width], 'counts': ...}.")
    size, counts = rle.get("size"), rle.get("counts")
    if not (isinstance(size, Sequence) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
        raise DataError(f"'size' of run lengths is {size!r}, expected [height, width].")
    height, width = size
    if height * width > MAX_PIXELS:
        raise DataError(f"a mask of {width} x {height} is more than the limit of {MAX_PIXELS:,} pixels.")
    if isinstance(counts, str | bytes):
        counts = _read_counts(counts if isinstance(counts, bytes) else counts.encode("ascii", "replace"))
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise DataError("'counts' of run lengths are neither a list of numbers from 0 on nor COCO's string of them.")
    if (total := sum(counts)) != height * width:
        said = total if total <= MAX_PIXELS else f"more than {MAX_PIXELS:,}"
        raise DataError(f"run lengths for {said} pixels, but the mask has {width} x {height} = {width * height}.")
    pixels = b"".join((b"\0", b"\xff")[index % 2] * count for index, count in enumerate(counts))
    return Image.frombytes("L", (height, width), pixels).transpose(Image.Transpose.TRANSPOSE)


def _read_counts(text: bytes) -> list[int]:
    """Numbers of five bits a character, of which the sixth says that more follow.

    From the fourth on they are differences to the last number but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 60:
            raise DataError(f"'counts' of run lengths are damaged near number {len(counts) + 1}.")
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise DataError("'counts' of run lengths end in the middle of a number.")
    return counts


def trace(mask: Image.Image) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    """Return the outlines and the holes of ``mask`` (mode L, 0 or 255) as flat x, y lists along the pixels' edges.

    Where outlines have corners, an odd number of the four pixels around a corner is inside, or two that touch at the
    corner only (a corner of two outlines). Along every row, and along every column, corners are ends of edges in turn.
    """
    corners = _find_corners(mask)
    if len(corners) > MAX_CORNERS:
        raise DataError(
            f"the outlines of the mask of {mask.width} x {mask.height} pixels have {len(corners):,} corners, more than "
            f"the limit of {MAX_CORNERS:,}: it looks like noise."
        )
    by_column = sorted(range(len(corners)), key=lambda index: corners[index])
    down = {}
    for first, second in zip(by_column[::2], by_column[1::2], strict=True):
        down[first], down[second] = second, first
    seen = bytearray(len(corners))
    outlines, holes = [], []
    for start in range(len(corners)):
        if seen[start]:
            continue
        flat: list[float] = []
        corner = start
        while not seen[corner]:
            along = corner ^ 1  # corners are listed row by row
            flat += (*corners[corner], *corners[along])
            seen[corner] = seen[along] = 1
            corner = down[along]
        # The first corner of a ring is its upper left one: the pixel below and right of it is on the ring's inside.
        (outlines if mask.getpixel(corners[start]) else holes).append(tuple(flat))
    return tuple(outlines), tuple(holes)


def _find_corners(mask: Image.Image) -> list[tuple[int, int]]:
    """Corners of outlines, (x, y) with the pixel (x, y) below and to the right, row by row; those of two come twice."""
    width, height = mask.size
    framed = Image.new("L", (width + 2, height + 2))
    framed.paste(mask, (1, 1))
    above_left, above, left, here = (
        framed.crop((x, y, x + width + 1, y + height + 1)) for x, y in ((0, 0), (1, 0), (0, 1), (1, 1))
    )
    differ = ImageChops.difference
    odd = differ(differ(above_left, above), differ(left, here))
    touching = ImageChops.darker(differ(above_left, above), differ(above_left, left))
    touching = ImageChops.subtract(touching, differ(above_left, here))
    ones = ((match.start(), 1) for match in re.finditer(rb"\xff", odd.tobytes()))
    twos = ((match.start(), 2) for match in re.finditer(rb"\xff", touching.tobytes()))
    places = sorted([*ones, *twos])
    return [(place % (width + 1), place // (width + 1)) for place, count in places for _ in range(count)]
