"""Writing a picture file so that it is there whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image

from sightbridge.errors import ImageError

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Formats that are written, by the end of the file's name."""
LONGEST_SIDE = {"WEBP": 16383, "JPEG": 65500}
"""Pixels that a format, or its library, has room for in width and height; PNG has for any picture here."""


def check_suffix(path: Path) -> str:
    """Return the format that the name of ``path`` asks for; raises ``ImageError`` if it is none of ``SUFFIXES``."""
    if path.suffix.lower() not in SUFFIXES:
        raise ImageError(f"{path}: pictures are written as {', '.join(SUFFIXES)}. Give the file one of these endings.")
    return SUFFIXES[path.suffix.lower()]


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write ``picture`` to ``path``, in the format of its ending; another process never sees half of it.

    Raises ``ImageError`` for an unknown ending, or for a place that cannot be written to.
    """
    encoded, kind = io.BytesIO(), check_suffix(path)
    longest = LONGEST_SIDE.get(kind)
    if longest and max(picture.size) > longest:
        raise ImageError(f"{path}: {kind} holds {longest} pixels a side, not {max(picture.size)}. Write it as .png.")
    picture.save(encoded, kind, quality=95)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(encoded.getvalue())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ImageError(f"{path}: cannot write the picture: {error.strerror or error}.") from error
