"""What is drawn is where its box is, in its colour, and digits of the test part are scans training never saw."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightbridge.data.scenes import draw
from sightbridge.data.scenes.draw import INK, draw_scene
from sightbridge.data.scenes.world import (
    COLOURS,
    DIGITS,
    GRID,
    HELD_OUT_VARIANT,
    SHAPES,
    Scene,
    SceneObject,
    sample_scene,
)

SIZES = (16, 17, 48, 96, 200, 512)
variants = st.integers(0, 2 * HELD_OUT_VARIANT - 1)


def pixels(scene, size):
    image, boxes = draw_scene(scene, size)
    assert image.size == (size, size) and image.mode == "RGB" and len(boxes) == len(scene.objects)
    return np.asarray(image).astype(int), boxes


def drawn(thing, size, seed=0):
    """The box of a thing alone in a picture, and that of the pixels that it changes."""
    object_set = "digits" if thing.kind in DIGITS else "shapes"
    picture, (box,) = pixels(Scene((thing,), object_set, seed), size)
    empty, _ = pixels(Scene((), object_set, seed), size)
    rows, columns = np.nonzero((picture != empty).any(axis=-1))
    return box, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@settings(max_examples=60)
@given(st.sampled_from([*SHAPES, *DIGITS]), st.integers(0, 8), variants, st.sampled_from(SIZES))
def test_boxes_hold_what_is_drawn(kind, position, variant, size):
    thing = SceneObject(kind, "purple", position, variant)
    box, seen = drawn(thing, size)
    # a pixel that the box only touches may be tinted, as drawing is antialiased from thirds of a pixel
    assert seen[0] > box[0] - 1.4 and seen[1] > box[1] - 1.4
    assert seen[2] < box[2] + 1.4 and seen[3] < box[3] + 1.4
    assert 0 <= box[0] < box[2] <= size and 0 <= box[1] < box[3] <= size
    if kind in SHAPES:  # scans have margins of their own
        assert max(abs(a - b) for a, b in zip(box, seen, strict=True)) < 1.5
    row, column = divmod(position, GRID)
    middle = (box[0] + box[2]) / 2 * GRID / size, (box[1] + box[3]) / 2 * GRID / size
    assert (int(middle[0]), int(middle[1])) == (column, row)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_shapes_have_their_colour(kind, colour):
    for variant in range(5):
        picture, ((left, top, right, bottom),) = pixels(
            Scene((SceneObject(kind, colour, 4, variant),), "shapes", 1), 96
        )
        middle = picture[round(top + (bottom - top) * 0.6), round((left + right) / 2)]
        distances = {name: np.abs(middle - ink).sum() for name, ink in INK.items()}
        assert min(distances, key=distances.__getitem__) == colour


def test_shapes_differ():
    """Share of its box that each shape fills: pi/4, 1, 1/2 and about a third."""
    filled = {}
    for kind in SHAPES:
        thing = SceneObject(kind, "blue", 4, 3)
        (left, top, right, bottom), _ = drawn(thing, 512)
        changed = (pixels(Scene((thing,), "shapes", 0), 512)[0] != pixels(Scene((), "shapes", 0), 512)[0]).any(axis=-1)
        filled[kind] = changed.sum() / ((right - left) * (bottom - top))
    assert filled["circle"] == pytest.approx(0.785, abs=0.02)
    assert filled["square"] == pytest.approx(1.0, abs=0.03)
    assert filled["triangle"] == pytest.approx(0.5, abs=0.02)
    assert 0.25 < filled["star"] < 0.42


@pytest.mark.parametrize("object_set", ["shapes", "digits"])
def test_the_same_scene_gives_the_same_pixels(object_set):
    scene = sample_scene(random.Random(5), object_set)
    assert scene == sample_scene(random.Random(5), object_set)
    assert draw_scene(scene)[0].tobytes() == draw_scene(scene)[0].tobytes()
    assert draw_scene(scene)[0].tobytes() != draw_scene(sample_scene(random.Random(6), object_set))[0].tobytes()


@settings(max_examples=40)
@given(st.sampled_from(DIGITS), st.integers(0, HELD_OUT_VARIANT - 1))
def test_held_out_digits_are_scans_of_their_own(digit, variant):
    """With the last fifth of each digit's scans wiped, held-out digits vanish and all others stay whole."""
    real, digits = draw.digit_scans()
    marked = np.full_like(real, 16)
    for kind in range(10):
        of_kind = np.flatnonzero(digits == kind)
        marked[of_kind[len(of_kind) * 4 // 5 :]] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "digit_scans", lambda: (marked, digits))
        empty, _ = pixels(Scene((), "digits", 0), 48)
        for held_out in (False, True):
            thing = SceneObject(digit, "red", 4, variant + held_out * HELD_OUT_VARIANT)
            picture, _ = pixels(Scene((thing,), "digits", 0), 48)
            assert (picture == empty).all() == held_out


def test_sampling_marks_held_out_digits():
    rng = random.Random(0)
    for held_out in (False, True):
        variants = [o.variant for _ in range(50) for o in sample_scene(rng, "digits", held_out=held_out).objects]
        assert all((variant >= HELD_OUT_VARIANT) == held_out for variant in variants)


def test_scans_are_what_their_labels_say():
    """The nearest mean of the training scans reads most held-out ones: labels and scans belong together."""
    scans, digits = draw.digit_scans()
    assert scans.shape == (1797, 8, 8) and scans.max() == 16 and len(digits) == 1797
    parts = {kind: np.split(of, [len(of) * 4 // 5]) for kind in range(10) for of in [np.flatnonzero(digits == kind)]}
    means = np.stack([scans[parts[kind][0]].mean(axis=0).ravel() for kind in range(10)])
    hits = [
        np.linalg.norm(means - scan.ravel(), axis=1).argmin() == kind
        for kind, (_, held_out) in parts.items()
        for scan in scans[held_out]
    ]
    assert np.mean(hits) > 0.8
