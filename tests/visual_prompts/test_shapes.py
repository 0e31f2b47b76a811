"""The shapes' distributions are ViP-LLaVA's: ranges, means and geometry over many seeds."""

from __future__ import annotations

import itertools
import math
import random
from statistics import fmean, pvariance

import pytest
from PIL import Image

from sightbridge.visual_prompts import SHAPES, Mark, Region, Shape, draw
from sightbridge.visual_prompts.region import place
from sightbridge.visual_prompts.shapes import Stroke, sketch

SIZE = (672, 500)
SCALE = 2.0
BOX = (100, 100, 340, 260)
DRAWS = 1000
L_SHAPE = (100, 100, 140, 100, 140, 220, 340, 220, 340, 260, 100, 260)


def sketches(
    shape: Shape, *, polygons: tuple = (), box: tuple = BOX, scale: float = SCALE, draws: int = DRAWS, **style: object
) -> list[list[Stroke]]:
    """Sketches of one region, by a fresh seed each."""
    mark = Mark(Region(box, polygons=polygons), shape, **style)  # type: ignore[arg-type]
    area = place(mark.region, SIZE)
    return [sketch(area, mark, scale, random.Random(seed)) for seed in range(draws)]


def span(stroke: Stroke) -> tuple[float, float]:
    """Width and height of a stroke of two corners."""
    (left, top), (right, bottom) = stroke.points
    return right - left, bottom - top


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [
        ("rectangle", 2, 8),
        ("ellipse", 2, 8),
        ("triangle", 2, 8),
        ("scribble", 2, 12),
        ("mask contour", 1, 2),
        ("arrow", 1, 6),
    ],
)
def test_line_widths(shape: Shape, low: int, high: int) -> None:
    for scale in (1.0, 1.9, 2.0):
        widths = [strokes[0].width for strokes in sketches(shape, scale=scale)]
        assert set(widths) == set(range(int(low * scale), int(high * scale) + 1))
        assert fmean(widths) == pytest.approx((int(low * scale) + int(high * scale)) / 2, rel=0.05)


def test_no_line_is_thinner_than_a_pixel() -> None:
    for shape in SHAPES:
        assert all(
            stroke.width == 1 for strokes in sketches(shape, scale=0.1, draws=100) for stroke in strokes if stroke.width
        )


def test_given_and_constant_widths() -> None:
    assert {strokes[0].width for strokes in sketches("rectangle", width=3.7)} == {7}
    assert {strokes[0].width for strokes in sketches("rectangle", constant=True)} == {6}
    assert all(span(strokes[0]) == pytest.approx((32, 32)) for strokes in sketches("point", constant=True))


def test_alphas() -> None:
    picture = Image.new("RGB", (40, 40), "white")
    for shape, low, high in (("rectangle", 96, 255), ("mask", 48, 128)):
        mark = Mark(Region((0, 0, 39, 39)), shape, (0, 0, 0), None)
        alphas = [255 - draw(picture, [mark], random.Random(seed)).getpixel((0, 0))[0] for seed in range(DRAWS)]
        assert low <= min(alphas) <= low + 3
        assert high - 3 <= max(alphas) <= high
        assert fmean(alphas) == pytest.approx((low + high) / 2, rel=0.03)


def test_ellipses_are_stretched_up_to_one_and_a_half_times() -> None:
    inside = (150, 120, 250, 120, 250, 220, 150, 220)  # the bounds of polygons count, not the box
    spans = [span(strokes[0]) for strokes in sketches("ellipse", polygons=(inside,))]
    for lengths in zip(*spans, strict=True):
        assert min(lengths) >= 100 < 101
        assert 149 < max(lengths) <= 150
        assert fmean(lengths) == pytest.approx(125, rel=0.01)
    middles = {(round(sum(x)), round(sum(y))) for x, y in (zip(*s[0].points, strict=True) for s in sketches("ellipse"))}
    assert middles == {(440, 360)}
    across, down = (list(lengths) for lengths in zip(*spans, strict=True))
    assert abs(fmean(x * y for x, y in zip(across, down, strict=True)) - fmean(across) * fmean(down)) < 20


def test_triangles_are_never_flat() -> None:
    for strokes in sketches("triangle"):
        a, b, c, *_ = strokes[0].points
        assert strokes[0].points == (a, b, c, a, b)
        for corner, one, other in ((a, b, c), (b, c, a), (c, a, b)):
            first, second = (math.atan2(p[1] - corner[1], p[0] - corner[0]) for p in (one, other))
            assert abs((math.degrees(first - second) + 180) % 360 - 180) <= 150.001


def test_triangle_corners_spread_over_the_outline() -> None:
    corners = [corner for strokes in sketches("triangle", polygons=(L_SHAPE,)) for corner in strokes[0].points[:3]]
    inside = [x <= 140 or y >= 220 for x, y in corners]
    assert all(inside)
    # Rejecting flat triangles favours the corner of the L a little; its arms hold 40 x 120 and 240 x 40 pixels.
    assert fmean(y < 220 for _, y in corners) == pytest.approx(1 / 3, abs=0.06)


def test_a_thin_box_still_gets_a_triangle() -> None:
    for strokes in sketches("triangle", box=(100, 100, 300, 100), draws=30):
        assert strokes[0].points[:3] == ((100, 100), (200, 100), (300, 100))


def test_points_lie_near_the_middle() -> None:
    middles, ratios = [], []
    for strokes in sketches("point"):
        (left, top), (right, bottom) = strokes[0].points
        middles.append(((left + right) / 2, (top + bottom) / 2))
        ratios.append(math.sqrt((right - left) / (bottom - top)))
        assert 10 - 1e-6 <= math.sqrt((right - left) * (bottom - top)) / 2 <= 40 + 1e-6
    xs, ys = zip(*middles, strict=True)
    assert (fmean(xs), fmean(ys)) == pytest.approx((220, 180), abs=0.5)
    # The variance, not the deviation, is an eighth of the side.
    assert (pvariance(xs), pvariance(ys)) == pytest.approx((30, 20), rel=0.12)
    assert fmean(math.isclose(ratio, 1) for ratio in ratios) == pytest.approx(0.5, abs=0.04)
    stretched = [ratio for ratio in ratios if not math.isclose(ratio, 1)]
    assert 0.5 <= min(stretched) < 0.51
    assert 1.99 < max(stretched) <= 2
    assert fmean(stretched) == pytest.approx(1.25, abs=0.05)


def test_points_fall_on_one_of_the_polygons() -> None:
    two = ((100, 100, 140, 100, 140, 140, 100, 140), (300, 200, 340, 200, 340, 260, 300, 260))
    left = 0
    for strokes in sketches("point", polygons=two, constant=True):
        (x1, y1), (x2, y2) = strokes[0].points
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        assert (100 <= x <= 140 and 100 <= y <= 140) or (300 <= x <= 340 and 200 <= y <= 260)
        left += x < 200
    assert left / DRAWS == pytest.approx(0.5, abs=0.04)


def test_scribbles_are_curves_of_four_points() -> None:
    for strokes in sketches("scribble", draws=100):
        points = strokes[0].points
        assert all(100 <= x <= 340 and 100 <= y <= 260 for x, y in points)  # a Bezier curve stays within its points
        # Fourth differences of a cubic at even steps are nil.
        for values in zip(*points, strict=True):
            differences = list(values)
            for _ in range(4):
                differences = [b - a for a, b in itertools.pairwise(differences)]
            assert max(map(abs, differences)) < 1e-6
    starts = [strokes[0].points[0] for strokes in sketches("scribble")]
    assert fmean(x for x, _ in starts) == pytest.approx(220, abs=5)
    assert fmean(y for _, y in starts) == pytest.approx(180, abs=4)


def test_arrows_point_at_the_region() -> None:
    filled, bent, angles, lengths = 0, 0, [], []
    for shaft, head in sketches("arrow"):
        target = head.points[1]
        assert 160 <= target[0] <= 280
        assert 140 <= target[1] <= 220
        filled += head.width == 0
        bent += len(shaft.points) == 3
        tail = shaft.points[-1]
        size = math.dist(head.points[0], target)
        assert math.dist(head.points[2], target) == pytest.approx(size)
        angle = math.atan2(tail[1] - target[1], tail[0] - target[0])
        for side in (head.points[0], head.points[2]):
            turned = math.atan2(side[1] - target[1], side[0] - target[0]) - angle
            assert abs((math.degrees(turned) + 180) % 360 - 180) == pytest.approx(60)
        start = size / 2 if head.width == 0 else 0
        assert math.dist(shaft.points[0], target) == pytest.approx(start, abs=1e-6)
        if len(shaft.points) == 3:
            (x0, y0), (x, y), (x1, y1) = shaft.points
            assert max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) <= 10
        angles.append(angle)
        lengths.append(math.dist(tail, target) + size)
        assert 12 <= size <= 0.5 * lengths[-1] + 1e-6
    assert min(lengths) >= 100  # between 50 scale and 0.8 of the shorter side, whichever is less
    assert max(lengths) <= 128
    assert fmean(lengths) == pytest.approx(114, rel=0.01)
    assert filled / DRAWS == pytest.approx(0.5, abs=0.04)
    assert bent / DRAWS == pytest.approx(0.5, abs=0.04)
    for quarter in range(4):
        share = fmean(quarter <= (angle + math.pi) / (math.pi / 2) < quarter + 1 for angle in angles)
        assert share == pytest.approx(0.25, abs=0.03)


def test_arrows_at_small_things_keep_their_shaft() -> None:
    for shaft, head in sketches("arrow", box=(100, 100, 102, 102)):
        assert math.dist(shaft.points[-1], head.points[1]) >= math.dist(head.points[0], head.points[1]) - 1e-6
        assert math.dist(head.points[0], head.points[1]) >= 12 - 1e-6
