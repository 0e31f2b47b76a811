"""Masks become outlines: what COCO's run lengths say, and exactly the pixels that a mask has."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from sightbridge.errors import DataError
from sightbridge.visual_prompts import Mark, decode_rle, draw, region_from_mask, region_from_rle
from sightbridge.visual_prompts.masks import trace
from sightbridge.visual_prompts.region import place


def picture_of(rows: list[str]) -> Image.Image:
    """A mask of '#' and '.'."""
    pixels = b"".join(b"\xff" if sign == "#" else b"\0" for row in rows for sign in row)
    return Image.frombytes("L", (len(rows[0]), len(rows)), pixels)


RING = picture_of(["......", ".####.", ".#..#.", ".#..#.", ".####.", "......"])


def test_trace_finds_outlines_and_holes() -> None:
    assert trace(RING) == (((1, 1, 5, 1, 5, 5, 1, 5),), ((2, 2, 4, 2, 4, 4, 2, 4),))
    two = picture_of(["##..", "##..", "...#"])
    assert trace(two) == (((0, 0, 2, 0, 2, 2, 0, 2), (3, 2, 4, 2, 4, 3, 3, 3)), ())


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 9).flatmap(
        lambda w: st.lists(st.lists(st.booleans(), min_size=w, max_size=w), min_size=1, max_size=9)
    )
)
def test_the_middle_of_every_pixel_is_inside_as_the_mask_says(rows: list[list[bool]]) -> None:
    """Also where pixels touch at corners only, and for islands in holes."""
    mask = picture_of(["".join("#" if value else "." for value in row) for row in rows])
    if not any(map(any, rows)):
        with pytest.raises(DataError, match="marks nothing"):
            region_from_mask(mask)
        return
    area = place(region_from_mask(mask), mask.size)
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            assert area.contains((x + 0.5, y + 0.5)) == value


def test_a_mask_is_drawn_where_it_is() -> None:
    mask = Image.new("L", (200, 150))
    ImageDraw.Draw(mask).ellipse((40, 30, 160, 120), 255)
    ImageDraw.Draw(mask).ellipse((80, 60, 120, 90), 0)
    ImageDraw.Draw(mask).rectangle((97, 72, 103, 78), 255)
    region = region_from_mask(mask)
    assert region.box == (40, 30, 161, 121)
    assert (len(region.polygons), len(region.holes)) == (2, 1)
    white = Image.new("RGB", mask.size, "white")
    drawn = draw(white, [Mark(region, "mask", (0, 0, 0), None, alpha=255)], random.Random(0))
    # Pillow fills polygons with their edges: a pixel more at right and bottom, as for COCO's polygons.
    differing = sum(a != 255 - b for a, b in zip(mask.tobytes(), drawn.convert("L").tobytes(), strict=True))
    assert differing < 0.05 * sum(mask.tobytes()) / 255
    for place_, inside in {(50, 75): True, (90, 75): False, (100, 75): True, (20, 75): False}.items():
        assert (drawn.getpixel(place_) == (0, 0, 0)) == inside


@pytest.mark.parametrize("brightest", [1, 100, 255])
def test_masks_of_any_brightness(brightest: int) -> None:
    mask = RING.point([0] * 255 + [brightest])
    assert region_from_mask(mask) == region_from_mask(RING)
    assert region_from_mask(RING.convert("1")) == region_from_mask(RING)


def test_run_lengths_go_column_by_column() -> None:
    mask = decode_rle({"size": [3, 4], "counts": [1, 2, 5, 1, 3]})
    assert mask.size == (4, 3)
    assert mask.tobytes() == picture_of(["....", "#...", "#.#."]).tobytes()


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 40),
    density=st.sampled_from([0, 1, 50, 98, 100]),
    seed=st.integers(0, 1000),
)
def test_coco_strings_parity(height: int, width: int, density: int, seed: int) -> None:
    """What pycocotools wrote is read as it reads it, as a string and as bytes."""
    coco = pytest.importorskip("pycocotools.mask")
    rng = random.Random(seed)
    pixels = [[rng.randrange(100) < density for _ in range(width)] for _ in range(height)]
    rle = coco.encode(np.asfortranarray(pixels, dtype=np.uint8))
    for counts in (rle["counts"], rle["counts"].decode()):
        mask = decode_rle({"size": rle["size"], "counts": counts})
        assert (np.asarray(mask) // 255).tolist() == pixels


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"counts": [4]}, "'size'"),
        ({"size": [2, 2], "counts": [1, 2]}, "run lengths for 3 pixels, but the mask has 2 x 2 = 4"),
        ({"size": [2, 2], "counts": [-1, 5]}, "numbers from 0 on"),
        ({"size": [2, 2]}, "numbers from 0 on"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "limit of 64,000,000"),
        ({"size": [2, 2], "counts": "\x00\x01"}, "damaged near number 1"),
        ({"size": [2, 2], "counts": "äö"}, "."),
        ({"size": [2, 2], "counts": "oooooooooooooooo"}, "damaged"),
        ({"size": [2, 2], "counts": "o"}, "middle of a number"),
        ({"size": [2, 2], "counts": [4]}, "marks nothing"),
        ([2, 2], "are given as"),
    ],
)
def test_damaged_run_lengths_are_one_message(rle: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        region_from_rle(rle)
