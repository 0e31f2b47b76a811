"""Marks: their words, their colours, and how they are chosen at random."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightbridge.errors import DataError
from sightbridge.visual_prompts import (
    COLOURS,
    PREPOSITIONS,
    SHAPES,
    Mark,
    Region,
    parse_colour,
    random_marks,
    region_from_polygons,
    region_from_strokes,
)
from sightbridge.visual_prompts.looks import draw_pair

REGION = Region((1, 2, 30, 40))
REGIONS = [Region((n, n, n + 5, n + 5), label=str(n)) for n in range(12)]
DRAWS = 2000


@pytest.mark.parametrize(
    ("shape", "name", "phrase"),
    [
        ("rectangle", "red", "within the red rectangle"),
        ("ellipse", "lime", "within the lime ellipse"),
        ("triangle", None, "with the triangle"),
        ("point", "gold", "at the gold point"),
        ("scribble", "aqua", "with the aqua scribble"),
        ("mask contour", "blue", "with the blue mask contour"),
        ("mask", None, "with the mask"),
        ("arrow", None, "pointed to by the arrow"),
    ],
)
def test_phrases(shape, name, phrase) -> None:
    mark = Mark(REGION, shape, COLOURS.get(name, (1, 2, 3)), name)
    assert mark.phrase == phrase
    assert mark.in_words(article=False) == phrase.replace("the ", "")
    assert mark.in_words() == phrase
    assert phrase.endswith(mark.noun)


@given(st.integers(0, 2**32), st.booleans(), st.lists(st.sampled_from(SHAPES), min_size=1, max_size=9))
def test_a_phrase_names_what_is_drawn(seed: int, article: bool, shapes: list) -> None:
    for mark in random_marks(REGIONS, shapes, random.Random(seed)):
        parts = re.fullmatch(r"(within|with|at|pointed to by) (the )?(?:(\w+) )?(.+)", mark.in_words(article))
        assert parts
        preposition, the, first, rest = parts.groups()
        colour, shape = (None, f"{first} {rest}" if first else rest) if first not in COLOURS else (first, rest)
        assert mark.shape in shapes
        assert (shape, preposition) == (mark.shape, PREPOSITIONS[mark.shape])
        assert bool(the) == article
        assert colour == mark.colour_name
        assert colour is None or COLOURS[colour] == mark.colour


def test_colours_by_name_and_number() -> None:
    assert parse_colour("Orange ") == ((255, 165, 0), "orange")
    assert parse_colour("#ffa500") == ((255, 165, 0), "orange")
    assert parse_colour("255, 0,0") == ((255, 0, 0), "red")
    assert parse_colour("#010203") == ((1, 2, 3), None)
    for bad in ("", "rde", "#12345", "#12345g", "1,2", "1,2,3,4", "1,2,256", "-1,2,3", "1.5,2,3"):
        with pytest.raises(DataError, match=f"no colour '{bad}'"):
            parse_colour(bad)
    with pytest.raises(DataError, match="Did you mean 'purple'"):
        parse_colour("purpel")


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ({"shape": "elipse"}, "no shape 'elipse'.*Did you mean 'ellipse'"),
        ({"shape": 3}, "no shape '3'"),
        ({"colour": (1, 2)}, "three whole numbers"),
        ({"colour": (1, 2, 256)}, "three whole numbers"),
        ({"width": 0}, "width 0"),
        ({"width": float("nan")}, "width nan"),
        ({"width": 1e9}, "at most 336"),
        ({"alpha": 256}, "alpha 256"),
    ],
)
def test_marks_that_there_are_not(style: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Mark(REGION, **style)


def test_regions_without_points_are_one_message() -> None:
    assert region_from_polygons([(1, 2, 5, 1, 9, 8)], "dog").box == (1, 1, 9, 8)
    with pytest.raises(DataError, match="three points"):
        region_from_polygons([(1, 2, 3, 4)])
    with pytest.raises(DataError, match="one point"):
        region_from_strokes([()])


def test_one_mark_is_named_half_the_time() -> None:
    marks = [random_marks([REGION], SHAPES, random.Random(seed))[0] for seed in range(DRAWS)]
    shapes = Counter(mark.shape for mark in marks)
    names = Counter(mark.colour_name for mark in marks)
    assert set(shapes) == set(SHAPES)
    assert max(shapes.values()) < 1.25 * DRAWS / 8
    assert names.pop(None) / DRAWS == pytest.approx(0.5, abs=0.04)
    assert set(names) == set(COLOURS)
    assert max(names.values()) < 1.4 * DRAWS / 18
    assert all(mark.region is REGION and mark.alpha is None and mark.width is None for mark in marks)
    for channel in zip(*(mark.colour for mark in marks if mark.colour_name is None), strict=True):
        assert sum(channel) / len(channel) == pytest.approx(127.5, rel=0.06)


def test_marks_of_one_shape_get_different_names() -> None:
    for seed in range(300):
        marks = random_marks(REGIONS[:3], ("rectangle", "ellipse"), random.Random(seed))
        assert [mark.region for mark in marks] == REGIONS[:3]
        for shape, count in Counter(mark.shape for mark in marks).items():
            names = [mark.colour_name for mark in marks if mark.shape == shape]
            if count > 1:
                assert None not in names
                assert len(set(names)) == count
    assert len({mark.phrase for mark in random_marks(REGIONS[:9], ["mask"], random.Random(0))}) == 9


def test_beyond_nine_colours_have_no_name() -> None:
    marks = random_marks(REGIONS, ["arrow"], random.Random(0), constant=True)
    names = [mark.colour_name for mark in marks]
    assert set(names[:9]) == set(COLOURS)
    assert names[9:] == [None] * 3
    assert all(mark.constant for mark in marks)


def test_inheriting_a_colour_is_the_references_mistake_with_relations() -> None:
    same, inherited, independent = 0, 0, 0
    for seed in range(DRAWS):
        subject, thing = draw_pair(random.Random(seed), ("rectangle", "ellipse"), 2, exact=True)
        same += subject.shape == thing.shape
        if subject.shape == thing.shape:
            assert None not in (subject.colour_name, thing.colour_name)
            assert subject.colour != thing.colour
        else:
            assert (subject.colour, subject.colour_name) == (thing.colour, thing.colour_name)
            inherited += subject.colour_name is None
        one, other = draw_pair(random.Random(seed), ("rectangle", "ellipse"), 2, exact=False)
        independent += one.shape != other.shape and one.colour != other.colour
    assert same / DRAWS == pytest.approx(0.5, abs=0.04)
    assert inherited / (DRAWS - same) == pytest.approx(0.5, abs=0.06)
    assert independent / DRAWS > 0.45


def test_the_same_seed_gives_the_same_marks() -> None:
    assert random_marks(REGIONS, SHAPES, random.Random(7)) == random_marks(REGIONS, SHAPES, random.Random(7))
    assert random_marks(REGIONS, SHAPES, random.Random(7)) != random_marks(REGIONS, SHAPES, random.Random(8))
    assert random_marks([], SHAPES, random.Random(7)) == ()
    with pytest.raises(DataError, match="no shape to choose from"):
        random_marks([REGION], [], random.Random(0))
