"""``sightbridge draw``: marks on a picture, and the words that point at them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightbridge.cli.marks import (
    AlphaOption,
    BboxOption,
    ColorOption,
    MaskOption,
    PolygonOption,
    RegionOption,
    ShapeOption,
    StrokeOption,
    WidthOption,
    read_marks,
)
from sightbridge.errors import DataError, SettingsError

if TYPE_CHECKING:
    from PIL import Image

    from sightbridge.visual_prompts import Mark


def draw(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture file.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write the marked picture: .png, .jpg, .webp.")
    ],
    bbox: BboxOption = None,
    polygon: PolygonOption = None,
    mask: MaskOption = None,
    stroke: StrokeOption = None,
    region: RegionOption = None,
    shape: ShapeOption = None,
    color: ColorOption = None,
    width: WidthOption = None,
    alpha: AlphaOption = None,
    antialias: Annotated[bool, typer.Option("--antialias", help="Draw smooth edges.")] = False,
    as_trained: Annotated[
        bool, typer.Option("--as-trained", help="Draw open widths and alphas at random, as in ViP-LLaVA's training.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything random; the same seed draws the same picture.")] = 0,
    contact_sheet: Annotated[
        bool, typer.Option("--contact-sheet", help="Show the one region in all eight shapes, side by side.")
    ] = False,
) -> None:
    """Mark parts of a picture, and print the words with which a question points at each.

    \b
    Examples:
      sightbridge draw photo.jpg --bbox 100,200,200,300 --shape arrow --color red --alpha 0.6 -o out.png
      sightbridge draw photo.jpg --polygon 10,10,90,20,50,80 --shape "mask contour" -o out.png
      sightbridge draw photo.jpg --region "bbox=10,10,90,90;color=blue" --region "mask=dog.png;shape=mask" -o out.png
      sightbridge draw photo.jpg --bbox 100,200,200,300 --as-trained --contact-sheet -o shapes.png
    """
    from sightbridge.images.load import load_image
    from sightbridge.images.save import check_suffix

    check_suffix(out)
    if out.exists() and picture.exists() and out.samefile(picture):
        raise SettingsError(f"{out} is the picture itself. Give --out another name.")
    image = load_image(picture)
    places: dict[str, Any] = {"bbox": bbox, "polygon": polygon, "mask": mask, "stroke": stroke, "region": region}
    looks: dict[str, Any] = {"shape": shape, "color": color, "width": width, "alpha": alpha, "as_trained": as_trained}
    marks = read_marks(**places, **looks, size=image.size)
    if not marks:
        raise SettingsError(
            "nothing to draw. Add --bbox left,top,right,bottom, --polygon, --mask, --stroke or --region."
        )
    try:
        if contact_sheet:
            _save_contact_sheet(image, marks, random.Random(seed), antialias, out)
        else:
            _save_marked(image, marks, random.Random(seed), antialias, out)
    except DataError as error:
        raise DataError(f"{picture}: {error}") from error


def _save_marked(image: Image.Image, marks: list[Mark], rng: random.Random, antialias: bool, out: Path) -> None:
    from sightbridge.images.save import save_picture
    from sightbridge.visual_prompts import draw as draw_marks

    save_picture(draw_marks(image, marks, rng, antialias=antialias), out)
    typer.echo("\n".join(mark.phrase for mark in marks))


def _save_contact_sheet(image: Image.Image, marks: list[Mark], rng: random.Random, antialias: bool, out: Path) -> None:
    from sightbridge.images.save import save_picture
    from sightbridge.visual_prompts import draw_contact_sheet

    if len(marks) > 1:
        raise SettingsError(f"a contact sheet shows one region, not {len(marks)}.")
    save_picture(draw_contact_sheet(image, marks[0], rng, antialias=antialias), out)
