"""Drawing marks on a picture."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image, ImageDraw

from sightbridge.visual_prompts.mark import Mark


def draw(
    picture: Image.Image,
    marks: Sequence[Mark],
    rng: random.Random,
    *,
    anchor: int = 336,
    antialias: bool = False,
) -> Image.Image:
    """Return a copy of ``picture`` with ``marks`` drawn on it, one after the other."""
    for mark in marks:
        layer = Image.new("RGBA", picture.size)
        scale = max(picture.size) / anchor
        alpha = rng.randint(96, 255) if mark.alpha is None else mark.alpha
        drawn = rng.randint(int(2 * scale), int(8 * scale)) if mark.width is None else int(mark.width * scale)
        ImageDraw.Draw(layer).rectangle(mark.region.box, outline=(*mark.colour, alpha), width=max(drawn, 1))
        picture = Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")
    return picture.copy()
