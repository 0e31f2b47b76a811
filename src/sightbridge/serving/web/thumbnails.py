"""Small copies of pictures, as the conversation shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from sightbridge.data.marks import drawing
from sightbridge.data.record import Record
from sightbridge.errors import SightbridgeError
from sightbridge.images.load import load_image
from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.body import RegionBody
from sightbridge.serving.api.messages import read_marks

SIDE = 160
"""Pixels of the longer side."""


def thumbnail(data: bytes, regions: Sequence[dict[str, Any]], seen: int) -> str:
    """A small copy of an encoded picture, with its marks, as a ``data:`` URL. Raises ``ApiError``.

    ``seen``: side of the pictures that widths of marks are meant for, which is the model's own.
    """
    try:
        marks = read_marks([RegionBody.model_validate(region) for region in regions], image=0)
        picture = load_image(drawing(Record("thumbnail", (), (), marks=tuple(marks)), 0).on(data, seen))
    except SightbridgeError as error:
        raise ApiError(400, str(error), code="invalid_region") from error
    return to_url(picture, SIDE)


def to_url(picture: Image.Image, side: int) -> str:
    """A copy of at most ``side`` pixels as a ``data:`` URL."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
