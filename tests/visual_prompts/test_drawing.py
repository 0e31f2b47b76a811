"""Marks on pictures: where they are, what they leave alone, and that nothing makes drawing fail."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw

from sightbridge.errors import DataError
from sightbridge.visual_prompts import (
    SHAPES,
    Mark,
    Region,
    Shape,
    draw,
    draw_contact_sheet,
    region_from_polygons,
    region_from_strokes,
)

BLACK = (0, 0, 0)
each_shape = pytest.mark.parametrize("shape", SHAPES)


def opaque(region: Region, shape: Shape, width: float | None = None) -> Mark:
    return Mark(region, shape, BLACK, None, width, alpha=255)


def changed(before: Image.Image, after: Image.Image) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom (exclusive) of the pixels that differ."""
    return ImageChops.difference(before.convert("RGB"), after.convert("RGB")).getbbox()


def count_changed(before: Image.Image, after: Image.Image) -> int:
    different = ImageChops.difference(before, after).convert("L").point([0] + [1] * 255)
    return sum(different.tobytes())


def reach(shape: Shape, box: tuple[float, float, float, float], width: int, scale: float) -> float:
    """How far a mark may go beyond its box, from what the shapes are, not from how they are drawn."""
    across, down = box[2] - box[0], box[3] - box[1]
    arrow = max(50 * scale, 0.8 * min(across, down)) + 12 * scale + 7 * scale + 3 + width
    return {
        "rectangle": 0,
        "mask": 0,
        "mask contour": width,
        "triangle": width,
        "scribble": width,
        "ellipse": 0.25 * max(across, down),
        "point": 2 * width + 1,
        "arrow": arrow,
    }[shape]


coordinate = st.one_of(st.integers(-80, 160), st.floats(-1e9, 1e9), st.sampled_from([0, 1, 0.5, 1e30, -1e30]))
anything = st.one_of(coordinate, st.just(float("nan")), st.just(float("inf")))
sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@settings(max_examples=100, deadline=None)
@given(
    size=sizes,
    corners=st.tuples(coordinate, coordinate, coordinate, coordinate),
    polygons=st.lists(st.lists(anything, max_size=12), max_size=3),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**32),
    width=st.one_of(st.none(), st.floats(0.01, 30)),
    anchor=st.sampled_from([48, 336]),
    antialias=st.booleans(),
)
@example((2, 1), (4e-115, 0, 4e-115, 0), [], "rectangle", 0, None, 48, False)  # left + 1 - 1 is less than left
def test_any_region_on_any_picture(size, corners, polygons, shape, seed, width, anchor, antialias) -> None:
    left, right = sorted((corners[0], corners[2]))
    top, bottom = sorted((corners[1], corners[3]))
    region = Region((left, top, right, bottom), polygons=tuple(map(tuple, polygons)))
    picture = Image.new("RGB", size, "white")
    mark = opaque(region, shape, width)
    if right < 0 or bottom < 0 or left > size[0] or top > size[1]:
        with pytest.raises(DataError, match="outside of the picture"):
            draw(picture, [mark], random.Random(seed))
        return
    drawn = draw(picture, [mark], random.Random(seed), anchor=anchor, antialias=antialias)
    assert (drawn.size, drawn.mode) == (size, "RGB")
    assert picture.getextrema() == ((255, 255),) * 3, "the picture that came in was drawn on"
    assert changed(picture, drawn), "the mark does not show"
    assert drawn == draw(picture, [mark], random.Random(seed), anchor=anchor, antialias=antialias)


@settings(max_examples=100, deadline=None)
@given(
    size=sizes,
    data=st.data(),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**32),
    width=st.floats(0.1, 12),
    antialias=st.booleans(),
)
def test_nothing_changes_beyond_the_mark(size, data, shape, seed, width, antialias) -> None:
    left, right = sorted(data.draw(st.tuples(*[st.integers(0, size[0] - 1)] * 2)))
    top, bottom = sorted(data.draw(st.tuples(*[st.integers(0, size[1] - 1)] * 2)))
    box = (left, top, right, bottom)
    picture = Image.effect_noise(size, 40).convert("RGB")
    scale = max(size) / 48
    pixels = max(int(width * scale), 1)
    drawn = draw(picture, [opaque(Region(box), shape, width)], random.Random(seed), anchor=48, antialias=antialias)
    beyond = math.ceil(reach(shape, box, pixels, scale)) + (shape != "rectangle" and antialias)  # a soft edge
    found = changed(picture, drawn) or (left, top, left, top)
    assert found[0] >= left - beyond
    assert found[1] >= top - beyond
    assert found[2] - 1 <= right + beyond
    assert found[3] - 1 <= bottom + beyond


def test_rectangle_is_the_box() -> None:
    picture = Image.new("RGB", (336, 200), "white")
    drawn = draw(picture, [opaque(Region((20, 30, 119, 79)), "rectangle", 3)], random.Random(0))
    expected = picture.copy()
    ImageDraw.Draw(expected).rectangle((20, 30, 119, 79), outline=BLACK, width=3)
    assert drawn == expected
    assert count_changed(picture, drawn) == 100 * 50 - 94 * 44


def test_widths_grow_with_the_picture() -> None:
    for longer, expected in ((100, 1), (336, 3), (672, 6), (1000, 8)):
        picture = Image.new("RGB", (longer, 90), "white")
        drawn = draw(picture, [opaque(Region((10, 10, 90, 80)), "rectangle", 3)], random.Random(0))
        assert sum(drawn.getpixel((x, 45)) == BLACK for x in range(10, 50)) == expected


def test_thin_boxes_keep_their_marks_inside() -> None:
    picture = Image.new("RGB", (336, 336), "white")
    drawn = draw(picture, [opaque(Region((50, 50, 90, 52)), "rectangle", 9)], random.Random(0))
    assert changed(picture, drawn) == (50, 50, 91, 53)


def test_blending_is_alpha_compositing() -> None:
    picture = Image.effect_noise((336, 336), 80).convert("RGB")
    mark = Mark(Region((40, 50, 200, 210)), "rectangle", (255, 20, 147), None, width=5, alpha=77)
    layer = Image.new("RGBA", picture.size)
    ImageDraw.Draw(layer).rectangle(mark.region.box, outline=(255, 20, 147, 77), width=5)
    expected = Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")
    assert draw(picture, [mark], random.Random(0)) == expected


def test_contour_is_the_outline_at_every_offset() -> None:
    ring = (40, 40, 160, 60, 120, 170, 60, 120)
    picture = Image.new("RGB", (336, 336), "white")
    drawn = draw(picture, [opaque(region_from_polygons([ring]), "mask contour", 3)], random.Random(0))
    expected = picture.copy()
    for dx in range(-3, 4):
        for dy in range(-3, 4):
            points = [(x + dx, y + dy) for x, y in zip(ring[::2], ring[1::2], strict=True)]
            ImageDraw.Draw(expected).line([*points, points[0]], BLACK)
    assert count_changed(drawn, expected) == 0


def test_mask_fills_polygons_but_not_holes() -> None:
    outer, hole, island = (10, 10, 90, 10, 90, 90, 10, 90), (30, 30, 70, 30, 70, 70, 30, 70), (45, 45, 55, 45, 50, 55)
    region = Region((10, 10, 90, 90), polygons=(island, outer), holes=(hole,))
    picture = Image.new("RGB", (100, 100), "white")
    drawn = draw(picture, [opaque(region, "mask")], random.Random(0))
    inside = {(20, 20): True, (50, 48): True, (35, 50): False, (5, 5): False, (80, 50): True}
    assert {place: drawn.getpixel(place) == BLACK for place in inside} == inside


@pytest.mark.parametrize("shape", ["triangle", "point", "scribble"])
def test_points_are_drawn_within_the_outline(shape: Shape) -> None:
    """The middle of an L's box is not a part of it, nor are most of the box's points."""
    corner = (10, 10, 30, 10, 30, 170, 190, 170, 190, 190, 10, 190)
    picture = Image.new("RGB", (200, 200), "white")
    on_it = draw(picture, [opaque(region_from_polygons([corner]), "mask")], random.Random(0))
    for seed in range(30):
        drawn = draw(picture, [opaque(region_from_polygons([corner]), shape, 1)], random.Random(seed))
        both = ImageChops.lighter(drawn, on_it)
        assert changed(picture, both), f"seed {seed}"
        if shape == "point":
            assert count_changed(picture, both) > 0.5 * count_changed(picture, drawn)


@each_shape
def test_missing_and_degenerate_polygons_are_the_box(shape: Shape) -> None:
    box = (20, 30, 80, 90)
    picture = Image.new("RGB", (120, 120), "white")
    expected = draw(picture, [opaque(Region(box), shape)], random.Random(3))
    for bad in ((), (5, 5), (1, 2, 3, 4), (1, 2, 3, 4, 5), (1, 2, 3, 4, math.nan, 6), (500, 500, 600, 500, 600, 600)):
        drawn = draw(picture, [opaque(Region(box, polygons=(bad,)), shape)], random.Random(3))
        assert drawn == expected


def test_bad_boxes_are_one_message() -> None:
    picture = Image.new("RGB", (100, 80))
    cases = {
        (50, 10, 20, 30): r"box 50,10,20,30 is reversed.*x, y, width, height",
        (10, 90, 20, 95): "box 10,90,20,95 lies outside of the picture, which has 100 x 80 pixels",
        (0, 0, math.nan, 5): "no finite number",
        (0, 0, math.inf, 5): "no finite number",
    }
    for box, message in cases.items():
        with pytest.raises(DataError, match=message):
            draw(picture, [Mark(Region(box))], random.Random(0))


def test_a_box_beyond_the_edges_is_marked_along_them() -> None:
    picture = Image.new("RGB", (50, 40), "white")
    drawn = draw(picture, [opaque(Region((-1000, -5, 50, 40)), "rectangle", 1)], random.Random(0))
    assert count_changed(picture, drawn) == 2 * 50 + 2 * 38


@each_shape
def test_a_mark_around_everything_shows(shape: Shape) -> None:
    """An ellipse around a whole picture may be stretched out of it; then it is drawn again."""
    picture = Image.new("RGB", (64, 64), "white")
    for seed in range(40):
        assert changed(picture, draw(picture, [opaque(Region((0, 0, 64, 64)), shape)], random.Random(seed)))


def test_several_marks_lie_over_each_other() -> None:
    picture = Image.new("RGB", (100, 100), "white")
    marks = [
        Mark(Region((10, 10, 60, 60)), "mask", (255, 0, 0), "red", alpha=255),
        Mark(Region((40, 40, 90, 90)), "mask", (0, 0, 255), "blue", alpha=255),
    ]
    drawn = draw(picture, marks, random.Random(0))
    assert drawn.getpixel((20, 20)) == (255, 0, 0)
    assert drawn.getpixel((50, 50)) == (0, 0, 255)
    assert draw(picture, [], random.Random(0)) == picture


def test_strokes_are_scribbled_as_they_are() -> None:
    region = region_from_strokes([(10, 50, 90, 50), (30, 20, 30, 20)])
    assert region.box == (10, 20, 90, 50)
    picture = Image.new("RGB", (100, 100), "white")
    drawn = [
        draw(picture, [Mark(region, "scribble", BLACK, None, width=20, alpha=128)], random.Random(seed))
        for seed in (1, 2)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0].getpixel((50, 50)) == (127, 127, 127)
    assert drawn[0].getpixel((30, 20)) == (127, 127, 127)  # a tap is a dot
    assert drawn[0].getpixel((50, 20)) == (255, 255, 255)


def test_arrows_and_triangles_follow_a_stroke() -> None:
    """An arrow points where its stroke ends, and a triangle has the corners of its stroke."""
    picture = Image.new("RGB", (336, 336), "white")
    arrow = opaque(region_from_strokes([(20, 100, 200, 40, 300, 100)]), "arrow")
    triangle = opaque(region_from_strokes([(50, 250, 100, 150, 150, 250)]), "triangle", width=2)
    drawn = [draw(picture, [mark], random.Random(seed)) for mark in (arrow, triangle) for seed in (1, 2)]
    constant = [replace(mark, constant=True) for mark in (arrow, triangle)]
    pointed, cornered = (draw(picture, [mark], random.Random(3)) for mark in constant)
    assert changed(picture, pointed) == (19, 89, 301, 111)  # a head of 12 pixels, 60 degrees to each side
    assert pointed.getpixel((299, 100)) == pointed.getpixel((150, 100)) == BLACK
    assert pointed.getpixel((200, 40)) == (255, 255, 255)
    assert drawn[2] == drawn[3] == cornered
    assert all(cornered.getpixel(corner) == BLACK for corner in [(50, 250), (100, 150), (150, 250), (75, 200)])
    assert cornered.getpixel((100, 200)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "expected"), [("RGB", "RGB"), ("RGBA", "RGBA"), ("L", "RGB"), ("P", "RGB")])
def test_modes(mode: str, expected: str) -> None:
    picture = Image.new(mode, (40, 40))
    drawn = draw(picture, [Mark(Region((5, 5, 30, 30)), "mask", alpha=255)], random.Random(0))
    assert drawn.mode == expected
    assert drawn.convert("RGBA").getpixel((15, 15)) == (255, 0, 0, 255)
    assert picture.mode == mode
    assert picture.convert("RGB").getbbox() is None


@each_shape
def test_antialiased_edges_are_soft_and_in_the_same_place(shape: Shape) -> None:
    picture = Image.new("RGB", (336, 336), "white")
    outline = (100, 60, 240, 100, 210, 250, 120, 230)
    region = Region((100.5, 60.5, 240.5, 250.5), polygons=(outline,))
    hard = draw(picture, [opaque(region, shape, 4)], random.Random(5))
    soft = draw(picture, [opaque(region, shape, 4)], random.Random(5), antialias=True)
    assert set(hard.convert("L").tobytes()) == {0, 255}
    assert len(set(soft.convert("L").tobytes())) > 2
    difference = ImageChops.difference(hard, soft).convert("L")
    assert sum(difference.tobytes()) / 255 < 0.45 * count_changed(picture, hard) + 10


def test_antialiasing_keeps_whole_boxes_sharp() -> None:
    picture = Image.new("RGB", (336, 336), "white")
    mark = opaque(Region((20, 30, 119, 79)), "rectangle", 3)
    assert draw(picture, [mark], random.Random(0), antialias=True) == draw(picture, [mark], random.Random(0))


def test_contact_sheet_has_eight_marked_tiles() -> None:
    picture = Image.new("RGB", (120, 60), "white")
    sheet = draw_contact_sheet(picture, Mark(Region((30, 10, 90, 50)), alpha=255), random.Random(0), side=120)
    assert sheet.size == (4 * 132 + 12, 2 * (60 + 30 + 12) + 12)
    for column in range(4):
        for row in range(2):
            left, top = 12 + column * 132, 12 + row * 102
            tile = sheet.crop((left, top, left + 120, top + 60))
            caption = sheet.crop((left, top + 60, left + 120, top + 90))
            assert tile.getcolors() and len(tile.getcolors(10000)) > 1
            assert caption.convert("L").getextrema()[0] < 60


def test_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, random\nfrom PIL import Image\nfrom sightbridge.visual_prompts import Mark, Region, draw\n"
        "draw(Image.new('RGB', (9, 9)), [Mark(Region((1, 1, 7, 7)))], random.Random(0))\n"
        "print([name for name in ('torch', 'numpy', 'transformers', 'pydantic') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr
