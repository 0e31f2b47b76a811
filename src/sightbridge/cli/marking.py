"""Marks on a picture that a model is asked about: the options for it, and the copy that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightbridge.cli.marks import read_marks
from sightbridge.errors import DataError, ImageError, SettingsError

if TYPE_CHECKING:
    from PIL import Image

    from sightbridge.images.load import ImageSource
    from sightbridge.visual_prompts import Mark

_PANEL = "The marked picture"

OnOption = Annotated[
    int, typer.Option("--on", metavar="N", min=1, help="Which of the pictures is marked.", rich_help_panel=_PANEL)
]
SaveMarkedOption = Annotated[
    Path | None,
    typer.Option(
        "--save-marked",
        metavar="FILE",
        help="Where to write what the model was shown: .png, .jpg, .webp.",
        show_default="PICTURE-marked.png in the current folder, or -marked-2 ...",
        rich_help_panel=_PANEL,
    ),
]
OverwriteMarkedOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace that file if it is there.", rich_help_panel=_PANEL)
]


def mark_one_of(
    images: Sequence[Path],
    opened: list[Image.Image],
    anchor: int,
    on: int,
    save_marked: Path | None,
    overwrite: bool,
    **options: Any,
) -> list[Mark]:
    """Read the marks that ``options`` (see ``read_marks``) describe, and draw them on their picture in ``opened``.

    Raises ``SightbridgeError`` for whatever is wrong with them, or with where a copy is to be written.
    """
    size = opened[on - 1].size if on <= len(opened) else None
    marks = read_marks(size=size, **options)
    _check_marking(marks, images, on, save_marked, overwrite)
    if marks:
        opened[on - 1] = draw_marks(opened[on - 1], marks, anchor, images[on - 1])
    return marks


def _check_marking(
    marks: Sequence[Mark], images: Sequence[Path], on: int, save_marked: Path | None, overwrite: bool
) -> None:
    """Find out before a model is loaded whether there is such a picture, and whether its copy can be written."""
    if not marks:
        if save_marked:
            raise SettingsError("--save-marked: nothing is marked. Add --bbox, --polygon or --region.")
        return
    if on > len(images):
        raise SettingsError(f"--on {on}: there {'is 1 picture' if len(images) == 1 else f'are {len(images)} pictures'}")
    if save_marked is None:
        return
    from sightbridge.images.save import check_suffix

    check_suffix(save_marked)
    if save_marked.exists() and any(save_marked.samefile(image) for image in images):
        raise SettingsError(f"--save-marked: {save_marked} is one of the pictures. Choose another name.")
    if save_marked.exists() and not overwrite:
        raise SettingsError(
            f"--save-marked: {save_marked} is there already; choose another file, or --overwrite to lose that one"
        )


def draw_marks(picture: ImageSource, marks: Sequence[Mark], anchor: int, name: object) -> Image.Image:
    """Draw ``marks`` as a model with this ``anchor`` was shown them; the same marks always look alike.

    Raises ``DataError``, with the picture's ``name``, for a box outside of it.
    """
    import random

    from sightbridge.images.load import load_image
    from sightbridge.visual_prompts import draw

    try:
        return draw(load_image(picture), marks, random.Random(0), anchor=anchor)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def save_marked_copy(drawn: Image.Image, name: str, wanted: Path | None = None) -> Path:
    """Write a marked picture to ``wanted``, or under a name of its own that no file has yet; returns its path."""
    from sightbridge.images.save import save_picture

    path = wanted or _free_name(f"{Path(name).stem}-marked")
    save_picture(drawn, path)
    return path


def _free_name(stem: str) -> Path:
    """``STEM.png`` in the current folder, or ``STEM-2.png`` and so on; made at once, so that nobody else takes it."""
    for number in count(1):
        path = Path(f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise ImageError(
                f"{path}: cannot write the marked picture here: {error.strerror}. Say where by --save-marked FILE."
            ) from error
        return path
    raise AssertionError("there are always more numbers")
