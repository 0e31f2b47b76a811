"""Draws the pictures of docs/visual-prompts.md: ``python docs/draw_shapes.py``.

The ground is a duck on a pond, painted here, so that the pictures are ours to give away. Its outline is traced from
the mask that it was painted with.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from sightbridge.visual_prompts import Mark, Region, draw_contact_sheet, region_from_mask

IMAGES = Path(__file__).parent / "images"
SIZE = (672, 504)
SEED = 16
"""Chosen among a dozen because no mark of it is faint; training draws faint ones too."""
FINE = 3
"""Everything is painted so many times as large, for soft edges."""


def paint_pond(rng: random.Random) -> Image.Image:
    """Sky, hills and water, without anything on it."""
    width, height = SIZE[0] * FINE, SIZE[1] * FINE
    picture = Image.new("RGB", (width, height))
    pen = ImageDraw.Draw(picture)
    for y in range(height):
        part = y / height
        sky = (150 + round(90 * part), 195 + round(60 * part), 235)
        water = (60 + round(30 * part), 130 - round(40 * part), 160 - round(40 * part))
        pen.line((0, y, width, y), sky if part < 0.36 else water)
    for base, rise, colour in ((0.34, 0.10, (126, 158, 128)), (0.37, 0.06, (88, 130, 84))):
        hill = [
            (x, height * (base - rise * (0.5 + 0.5 * math.sin(3 + rise * 90 + x / width * 9)))) for x in range(width)
        ]
        pen.polygon([(0, height * 0.38), *hill, (width, height * 0.38)], colour)
    for _ in range(150):
        y = rng.uniform(0.40, 1) ** 0.8 * height
        x, length = rng.uniform(-0.1, 1) * width, rng.uniform(0.02, 0.12) * width * (y / height)
        pen.line((x, y, x + length, y), (120, 170, 185), max(1, int(4 * y / height * FINE / 2)))
    return picture


def paint_duck(picture: Image.Image, left: float, top: float, scale: float, body: str) -> Image.Image:
    """Paint a duck and return its mask; ``scale`` is its width in pixels of the finished picture over 200."""
    mask = Image.new("L", picture.size)

    def place(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [((left + x * scale) * FINE, (top + y * scale) * FINE) for x, y in points]

    pens = (ImageDraw.Draw(picture), ImageDraw.Draw(mask))
    parts = [
        ("polygon", place((0, 62), (42, 78), (60, 120), (24, 108)), body),  # tail
        ("ellipse", place((14, 66), (160, 150)), body),
        ("polygon", place((108, 100), (118, 40), (160, 40), (158, 112)), body),  # neck
        ("ellipse", place((110, 0), (172, 62)), body),  # head
        ("polygon", place((166, 24), (204, 36), (200, 44), (164, 46)), "#e8912a"),  # beak
    ]
    for kind, points, colour in parts:
        getattr(pens[0], kind)(points, fill=colour)
        getattr(pens[1], kind)(points, fill=255)
    pens[0].chord(place((40, 70), (128, 134)), 20, 190, "#5a4632")  # wing
    pens[0].ellipse(place((142, 18), (151, 27)), "#1c1c1c")
    return mask


def paint_ground() -> tuple[Image.Image, Region]:
    """The picture, and the region of the duck in front."""
    picture = paint_pond(random.Random(1))
    pen = ImageDraw.Draw(picture)
    for x in (560, 575, 592, 604, 618):  # reeds
        pen.line([(x * FINE, 330 * FINE), ((x + 8) * FINE, 175 * FINE)], "#55702f", 4 * FINE)
        pen.ellipse([((x + 3) * FINE, 165 * FINE), ((x + 13) * FINE, 205 * FINE)], "#6b4423")
    paint_duck(picture, 60, 195, 0.6, "#8a6d4b")
    mask = paint_duck(picture, 225, 165, 1.6, "#f4efe2")
    pen.ellipse([(70 * FINE, 360 * FINE), (150 * FINE, 440 * FINE)], "#d8433b")
    pen.chord([(70 * FINE, 360 * FINE), (150 * FINE, 440 * FINE)], 100, 260, "#f0ece6")
    picture = picture.reduce(FINE).filter(ImageFilter.SMOOTH)
    region = region_from_mask(mask.reduce(FINE))
    return picture, region


def main() -> None:
    """Write the pictures."""
    ground, duck = paint_ground()
    sheet = draw_contact_sheet(ground, Mark(duck), random.Random(SEED), antialias=True)
    sheet.save(IMAGES / "visual-prompt-shapes.png", optimize=True)


if __name__ == "__main__":
    main()
