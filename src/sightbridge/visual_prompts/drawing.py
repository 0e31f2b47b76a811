"""Drawing marks on a picture: each is painted on a layer of its own, and laid over the picture with its alpha."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from sightbridge.visual_prompts.mark import Colour, Mark
from sightbridge.visual_prompts.painting import LayerBox, find_bounds, paint
from sightbridge.visual_prompts.region import Area, place
from sightbridge.visual_prompts.shapes import Stroke, sketch

ALPHAS = (96, 255)
"""From and to, for a mark that leaves its alpha open (ViP-LLaVA)."""
MASK_ALPHAS = (48, 128)
"""The same for the shape ``mask``, through which the picture must be seen."""
TRIES = 10
"""How often a mark that came to lie outside of the picture is drawn again, and then again with the box alone."""


def draw(
    picture: Image.Image,
    marks: Sequence[Mark],
    rng: random.Random,
    *,
    anchor: int = 336,
    antialias: bool = False,
) -> Image.Image:
    """Return a copy of ``picture`` with ``marks`` drawn on it, one after the other; ``picture`` stays as it is.

    What a mark leaves open (width, alpha, jitter) comes from ``rng``: the same state gives the same picture. Lengths
    are scaled by the picture's longer side over ``anchor``, the side in pixels of what the vision tower sees. A mark
    always shows, unless its alpha is 0. The result has the mode RGBA if ``picture`` has, else RGB: grey has no colours.
    Raises ``DataError`` for a box that is reversed, not finite or wholly outside the picture.
    """
    drawn = picture.copy() if picture.mode in ("RGB", "RGBA") else picture.convert("RGB")
    scale = max(picture.size) / anchor
    for mark in marks:
        area = place(mark.region, picture.size)
        low, high = MASK_ALPHAS if mark.shape == "mask" else ALPHAS
        alpha = rng.randint(low, high) if mark.alpha is None else mark.alpha
        layer, at = _paint_visibly(area, mark, scale, rng, picture.size, antialias)
        _lay_over(drawn, layer, at, mark.colour, alpha)
    return drawn


def _paint_visibly(
    area: Area, mark: Mark, scale: float, rng: random.Random, size: tuple[int, int], antialias: bool
) -> tuple[Image.Image, LayerBox]:
    """Paint until something shows: an ellipse around the whole picture, for one, may lie outside of it."""
    for attempt in range(2 * TRIES):
        seen = area if attempt < TRIES else replace(area, polygons=(), holes=(), strokes=())
        strokes = sketch(seen, mark, scale, rng)
        if at := find_bounds(strokes, size):
            layer = paint(strokes, at, antialias)
            if layer.getbbox():
                return layer, at
    strokes = [Stroke("ellipse", (area.box[:2], area.box[2:]), 1)]  # the box was cut to the picture
    at = find_bounds(strokes, size)
    assert at is not None
    return paint(strokes, at, antialias), at


def _lay_over(picture: Image.Image, layer: Image.Image, at: LayerBox, colour: Colour, alpha: int) -> None:
    """Blend ``colour`` into the part ``at`` of ``picture``, as far as ``layer`` covers it, with ``alpha`` (0..255)."""
    opacity = layer.point([round(covered * alpha / 255) for covered in range(256)])
    if picture.mode == "RGB":  # on opaque pixels the same as alpha compositing, to the last bit, and faster
        picture.paste(colour, at, opacity)
        return
    ink = Image.new("RGBA", layer.size, colour)
    ink.putalpha(opacity)
    picture.alpha_composite(ink, at[:2])
