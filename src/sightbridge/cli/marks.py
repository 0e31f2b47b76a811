"""Marks from the command line: ``--bbox 100,200,200,300 --shape arrow``, for every verb that draws on pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightbridge.errors import DataError, SettingsError, nearest

if TYPE_CHECKING:
    from sightbridge.visual_prompts import Mark, Region

_WHERE = "Where the mark is"
_LOOKS = "What it looks like"

BboxOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        help="A box in pixels of the picture file. Can be repeated: a mark each.",
        show_default=False,
        rich_help_panel=_WHERE,
    ),
]
PolygonOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X1,Y1,X2,Y2,...",
        help="An outline. Can be repeated: together they are one region.",
        show_default=False,
        rich_help_panel=_WHERE,
    ),
]
MaskOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A picture of the same size that is light where the region is, or a JSON file with COCO's run lengths.",
        show_default=False,
        rich_help_panel=_WHERE,
    ),
]
StrokeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X1,Y1,X2,Y2,...",
        help="A line drawn by hand, which the shape 'scribble' shows. Can be repeated.",
        show_default=False,
        rich_help_panel=_WHERE,
    ),
]
RegionOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="'KEY=VALUE;...'",
        help="One mark of several: 'bbox=1,2,30,40;shape=arrow;color=blue'. Keys are the names of these options; "
        "what is given as an option holds for all regions that say nothing else. Can be repeated.",
        show_default=False,
        rich_help_panel=_WHERE,
    ),
]
ShapeOption = Annotated[
    str | None,
    typer.Option(
        help="rectangle, ellipse, triangle, point, scribble, 'mask contour', mask or arrow. "
        "\\[default: rectangle; scribble for a stroke]",
        show_default=False,
        rich_help_panel=_LOOKS,
    ),
]
ColorOption = Annotated[
    str | None,
    typer.Option(
        help="red, lime, blue, yellow, fuchsia, aqua, orange, purple, gold, '#rrggbb' or r,g,b. \\[default: red; the "
        "next of these for another mark of the same shape]",
        show_default=False,
        rich_help_panel=_LOOKS,
    ),
]
WidthOption = Annotated[
    float | None,
    typer.Option(
        help="Of the lines (radius of a point), in pixels of the picture as a model sees it; for 'draw' its longer "
        "side has 336. "
        "\\[default: 3; point 8, mask contour 1]",
        show_default=False,
        rich_help_panel=_LOOKS,
    ),
]
AlphaOption = Annotated[
    float | None,
    typer.Option(
        help="Opacity from 0 to 1; values above 1 count up to 255. \\[default: 0.5]",
        show_default=False,
        rich_help_panel=_LOOKS,
    ),
]

Fields = dict[str, list[str]]
KEYS = ("bbox", "polygon", "mask", "stroke", "shape", "color", "width", "alpha")
REPEATABLE = ("bbox", "polygon", "stroke")
DEFAULT_ALPHA = 128
"""Of 255: what ViP-LLaVA's command line and evaluation draw with."""


def read_marks(
    *,
    bbox: list[str] | None = None,
    polygon: list[str] | None = None,
    mask: Path | None = None,
    stroke: list[str] | None = None,
    region: list[str] | None = None,
    shape: str | None = None,
    color: str | None = None,
    width: float | None = None,
    alpha: float | None = None,
    as_trained: bool = False,
    size: tuple[int, int] | None = None,
    beside: Sequence[Mark] = (),
) -> list[Mark]:
    """Return the marks that the options above describe, in their order; an empty list if there is none.

    What is not given is as in ViP-LLaVA's evaluation (fixed width, half transparent), or, ``as_trained``, left to
    chance as in its training; colours tell marks of one shape apart, also those ``beside`` which they will stand.
    ``size`` is the picture's width and height, which a mask file must have too.
    Raises ``SettingsError`` or ``DataError`` in one line for anything that is no mark.
    """
    places: Fields = {
        "bbox": bbox or [],
        "polygon": polygon or [],
        "mask": [str(mask)] if mask else [],
        "stroke": stroke or [],
    }
    looks = {"shape": shape, "color": color, "width": width, "alpha": alpha}
    style: Fields = {key: [str(value)] for key, value in looks.items() if value is not None}
    outlined = places["polygon"] or places["mask"] or places["stroke"]
    if outlined and len(places["bbox"]) > 1:
        raise SettingsError(
            "several --bbox beside an outline: which is whose? Give each region as --region 'bbox=...'."
        )
    alone = [{"bbox": [box]} for box in places["bbox"]] if not outlined else [places]
    written = [*alone, *(parse_fields(text) for text in region or [])]
    if not written and style:
        raise SettingsError(f"--{next(iter(style))} says how to mark, but not where. Add --bbox, --polygon or --mask.")
    described = [style | fields for fields in written]
    _colour_apart(described, beside)
    return [_make_mark(fields, as_trained, size) for fields in described]


def parse_fields(text: str) -> Fields:
    """Return the values of ``bbox=1,2,30,40;shape=arrow`` by key; raises ``SettingsError`` for anything else."""
    fields: Fields = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in KEYS:
            raise SettingsError(
                f"region '{text}': expected KEY=VALUE with ';' between and keys of {', '.join(KEYS)}, got '{part}'."
                f"{nearest(key, list(KEYS))}"
            )
        if key in fields and key not in REPEATABLE:
            raise SettingsError(f"region '{text}' gives '{key}' twice.")
        fields.setdefault(key, []).append(value)
    if len(fields.get("bbox", [])) > 1:
        raise SettingsError(f"region '{text}' has two boxes. Give each its own --region.")
    return fields


def _colour_apart(described: list[Fields], beside: Sequence[Mark]) -> None:
    """Give each mark of open colour the first one by name that no other mark of its shape has; there are nine.

    Two red rectangles would both be called "within the red rectangle".
    """
    from sightbridge.visual_prompts import COLOURS, parse_colour

    taken = {(mark.shape, mark.colour_name) for mark in beside}
    taken |= {(_shape_of(fields), parse_colour(fields["color"][0])[1]) for fields in described if "color" in fields}
    for fields in described:
        if "color" not in fields:
            shape = _shape_of(fields)
            fields["color"] = [next((name for name in COLOURS if (shape, name) not in taken), "red")]
            taken.add((shape, fields["color"][0]))


def _shape_of(fields: Fields) -> str:
    default_shape = "scribble" if fields.get("stroke") else "rectangle"
    return fields.get("shape", [default_shape])[0].lower().replace("-", " ").replace("_", " ")


def _make_mark(fields: Fields, as_trained: bool, size: tuple[int, int] | None) -> Mark:
    from sightbridge.visual_prompts import Mark, parse_colour

    region = _make_region(fields, size)
    colour, colour_name = parse_colour(fields["color"][0])
    width = _read_number(fields["width"][0], "width") if "width" in fields else None
    alpha = _read_alpha(fields["alpha"][0]) if "alpha" in fields else (None if as_trained else DEFAULT_ALPHA)
    return Mark(region, _shape_of(fields), colour, colour_name, width, alpha, constant=not as_trained)  # pyright: ignore


def _make_region(fields: Fields, size: tuple[int, int] | None) -> Region:
    from sightbridge.visual_prompts import Region, region_from_polygons, region_from_strokes

    outlines = [key for key in ("polygon", "mask", "stroke") if fields.get(key)]
    if len(outlines) > 1:
        raise SettingsError(f"a region has either a {outlines[0]} or a {outlines[1]}. Give each its own --region.")
    box = _read_box(fields["bbox"][0]) if fields.get("bbox") else None
    if fields.get("polygon"):
        region = region_from_polygons([_read_line(text, "polygon") for text in fields["polygon"]])
    elif fields.get("stroke"):
        region = region_from_strokes([_read_line(text, "stroke") for text in fields["stroke"]])
    elif fields.get("mask"):
        region = _read_mask(Path(fields["mask"][0]), size)
    elif box:
        return Region(box)
    else:
        raise SettingsError("a region needs a bbox, a polygon, a mask or a stroke.")
    return replace(region, box=box) if box else region


def _read_mask(path: Path, size: tuple[int, int] | None) -> Region:
    from sightbridge.images.load import MAX_BYTES, load_image, read_bytes
    from sightbridge.visual_prompts import decode_rle, region_from_mask

    try:
        if path.suffix.lower() == ".json":
            mask = decode_rle(json.loads(read_bytes(path, str(path), MAX_BYTES)))
        else:
            mask = load_image(path)
        if size and mask.size != size:
            raise DataError(f"a mask of {mask.width} x {mask.height} pixels for a picture of {size[0]} x {size[1]}.")
        return region_from_mask(mask)
    except (DataError, ValueError, RecursionError) as error:  # damaged JSON, too deep, or a number of 5000 digits
        raise DataError(f"{path}: {error}") from error


def _read_box(text: str) -> tuple[float, float, float, float]:
    values = _read_numbers(text, "bbox")
    if len(values) != 4:
        raise SettingsError(f"bbox '{text}' has {len(values)} numbers, expected four: left,top,right,bottom.")
    return values[0], values[1], values[2], values[3]


def _read_line(text: str, what: str) -> tuple[float, ...]:
    values = _read_numbers(text, what)
    if len(values) % 2:
        raise SettingsError(f"{what} '{text[:80]}' has {len(values)} numbers, expected pairs: x1,y1,x2,y2,...")
    return values


def _read_numbers(text: str, what: str) -> tuple[float, ...]:
    return tuple(_read_number(part, what) for part in text.split(","))


def _read_number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise SettingsError(f"{what}: '{text}' is not a number.") from None
    if not math.isfinite(number):
        raise SettingsError(f"{what}: '{text}' is no finite number.")
    return number


def _read_alpha(text: str) -> int:
    value = _read_number(text, "alpha")
    if not 0 <= value <= 255:
        raise SettingsError(f"alpha: {text} is not from 0, invisible, to 1, opaque (or from 2 to 255).")
    return round(value * 255) if value <= 1 else round(value)
