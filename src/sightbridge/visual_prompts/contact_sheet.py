"""All eight shapes on one picture, side by side: to see what a region looks like in each."""

from __future__ import annotations

import random
from dataclasses import replace

from PIL import Image, ImageDraw, ImageFont

from sightbridge.visual_prompts.drawing import draw
from sightbridge.visual_prompts.mark import COLOURS, SHAPES, Mark

COLUMNS = 4
GAP, CAPTION = 12, 30


def draw_contact_sheet(
    picture: Image.Image, mark: Mark, rng: random.Random, *, side: int = 336, antialias: bool = False
) -> Image.Image:
    """Return a sheet of tiles, each ``picture`` with ``mark`` in another shape and colour and its phrase beneath.

    Sizes and places that the mark leaves open come from ``rng``, as for ``draw``, whose errors it raises. The longer
    side of a tile has ``side`` pixels.
    """
    factor = side / max(picture.size)
    width, height = (max(round(length * factor), 1) for length in picture.size)
    step_x, step_y = side + GAP, height + CAPTION + GAP
    rows = -(-len(SHAPES) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * step_x + GAP, rows * step_y + GAP), "white")
    for index, (shape, name) in enumerate(zip(SHAPES, COLOURS, strict=False)):
        shown = replace(mark, shape=shape, colour=COLOURS[name], colour_name=name)
        tile = draw(picture, [shown], rng, antialias=antialias).convert("RGB")
        tile = tile.resize((width, height), Image.Resampling.LANCZOS)
        x, y = GAP + index % COLUMNS * step_x, GAP + index // COLUMNS * step_y
        sheet.paste(tile, (x + (side - width) // 2, y))
        _write(sheet, shown.phrase, (x + side / 2, y + height + CAPTION / 2), side)
    return sheet


def _write(sheet: Image.Image, text: str, middle: tuple[float, float], width: int) -> None:
    font = ImageFont.load_default(max(8, min(17, width // 17)))
    ImageDraw.Draw(sheet).text(middle, text, "black", font, anchor="mm")
