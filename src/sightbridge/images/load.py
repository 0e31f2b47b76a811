"""Opening a picture from anywhere, safely: bounded before it is decoded, and always RGB afterwards.

How a picture becomes RGB follows the reference systems (LAVIS, mBLIP, LLaVA), which all call ``convert("RGB")``:
transparency is dropped, not composited; an EXIF orientation tag is not applied; of an animation the first frame is
taken. The one deviation is 16-bit grey, which Pillow clips to white; here it keeps its eight highest bits.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from sightbridge.errors import ImageError


class StoredImage(ABC):
    """A picture kept inside a larger file; it is read when it is opened, in whichever process that is."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Where it is, for messages; equal for equal pictures and for no others, so features are kept under it."""

    @abstractmethod
    def read(self, limit: int) -> bytes:
        """Return the encoded picture, or just more than ``limit`` bytes of a larger one."""


@dataclass(frozen=True)
class FileSlice(StoredImage):
    """``size`` bytes of the file ``path``, from byte ``offset`` on: a picture in a tar, which calls it ``member``."""

    path: Path
    offset: int
    size: int
    member: str = ""

    @property
    def name(self) -> str:
        """File, member and place."""
        return f"{self.path}, '{self.member}' at byte {self.offset}"

    def read(self, limit: int) -> bytes:
        """Read the slice, or its first ``limit`` + 1 bytes; raises ``ImageError`` if the file is shorter."""
        wanted = min(self.size, limit + 1)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(wanted)
        if len(data) < wanted:
            raise ImageError(f"{self.name}: the file ends inside of it. Was it replaced or cut off after it was read?")
        return data


ImageSource: TypeAlias = str | Path | bytes | StoredImage | Image.Image | np.ndarray
"""A picture: a file, a ``data:`` URL, the bytes of a file, a picture stored in a larger file, a Pillow picture, or
uint8 pixels (H, W[, 1, 3 or 4])."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are opened. Pillow knows more, but every decoder is a risk, and some start other programs (EPS)."""
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""Of the names of files that are taken from a folder for pictures."""

MAX_PIXELS = 64_000_000
"""Default bound on width x height; decoding takes three bytes for each."""
MAX_BYTES = 64 * 2**20
"""Default bound on the size of a file."""

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


def load_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, name: str | None = None
) -> Image.Image:
    """Open ``source`` and return it as an RGB picture; ``name`` stands for it in messages.

    Raises ``ImageError``, naming the picture, when it is missing, empty, truncated, damaged, of a format outside
    ``FORMATS``, larger than the bounds (checked on the file's size and header, before any pixel is decoded), or an
    array of another shape or type. Nothing is ever fetched: a URL other than ``data:`` is refused.
    """
    name = name or describe_source(source)
    if isinstance(source, np.ndarray):
        image = _from_array(source, name)
    elif isinstance(source, Image.Image):
        image = source
    else:
        image = _open(read_bytes(source, name, max_bytes), name)
    check_size(image.width, image.height, name, max_pixels)
    return _to_rgb(image, name)


def pictures_in(folder: Path) -> list[Path]:
    """Picture files of a folder, not of folders inside it, by name; raises ``ImageError`` if there are none."""
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS and file.is_file())
    if not found:
        raise ImageError(f"{folder}: the folder holds no pictures ({', '.join(ENDINGS)}).")
    return found


def describe_source(source: ImageSource) -> str:
    """Name ``source`` in a message: its path, or what it is."""
    if isinstance(source, np.ndarray):
        return f"array of shape {source.shape}"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"{source.mode} picture of {source.width} x {source.height} pixels"
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes"
    if isinstance(source, StoredImage):
        return source.name
    text = str(source)
    return text if len(text) <= 200 else f"{text[:80]}... ({len(text)} characters)"


def image_key(source: ImageSource) -> str:
    """Return a text that is equal for equal sources: a file's path, a place in a file, or a hash of all else."""
    if isinstance(source, StoredImage):
        return f"stored:{source.name}"
    if isinstance(source, str | Path) and not str(source).startswith("data:"):
        return f"file:{source}"
    if isinstance(source, np.ndarray):
        content = f"{source.shape}{source.dtype}".encode() + source.tobytes()
    elif isinstance(source, Image.Image):
        content = f"{source.size}{source.mode}{source.getpalette()}".encode() + source.tobytes()
    else:
        content = source if isinstance(source, bytes) else str(source).encode()
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def read_bytes(source: str | Path | bytes | StoredImage, name: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the encoded picture, after checking that it is there and within ``max_bytes``."""
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, StoredImage):
        with _telling_errors(name):
            data = source.read(max_bytes)
    elif str(source).startswith("data:"):
        data = _decode_data_url(str(source), name, max_bytes)
    elif re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", str(source)):
        raise ImageError(f"{name}: pictures are not fetched from addresses. Download it and give the file's path.")
    else:
        data = _read_file(Path(source), name, max_bytes)
    if not data:
        raise ImageError(f"{name}: the picture is empty (0 bytes). Replace the file.")
    if len(data) > max_bytes:
        raise ImageError(f"{name}: larger than the limit of {max_bytes:,} bytes. Save it smaller or raise max_bytes.")
    return data


def _read_file(path: Path, name: str, max_bytes: int) -> bytes:
    with _telling_errors(name):
        if path.is_dir():
            raise ImageError(f"{name}: is a folder, expected a picture file.")
        if not path.is_file():  # also keeps us from waiting on a pipe or a device
            raise ImageError(
                f"{name}: no such picture file. Check the path and the 'images' folder of the data source."
            )
        with path.open("rb") as file:
            return file.read(max_bytes + 1)


@contextmanager
def _telling_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ImageError(f"{name}: cannot read the picture file: {error.strerror or error}.") from error


def _decode_data_url(url: str, name: str, max_bytes: int) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma or not header.endswith(";base64"):
        raise ImageError(f"{name}: expected a data: URL of the form 'data:image/png;base64,...'.")
    if len(payload) > max_bytes * 4 // 3 + 4:
        raise ImageError(f"{name}: larger than the limit of {max_bytes:,} bytes. Send a smaller picture.")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ImageError(f"{name}: the data: URL is not valid base64 ({error}).") from error


def _open(data: bytes, name: str) -> Image.Image:
    """Read the header only: afterwards the size is known and no pixel is decoded."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error} Save it smaller.") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not a picture in a supported format ({', '.join(FORMATS)}); it begins with {data[:12]!r}. "
            "Convert or replace it."
        ) from error
    except Exception as error:  # on damaged headers Pillow's readers raise nearly anything
        raise ImageError(f"{name}: the picture's header is damaged ({error}). Replace the file.") from error


def _from_array(pixels: np.ndarray, name: str) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise ImageError(f"{name}: expected pixels of type uint8 (0 to 255), got {pixels.dtype}.")
    grey = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1)
    if not grey and not (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        raise ImageError(
            f"{name}: expected shape (height, width), or (height, width, channels) with 1, 3 or 4 channels."
        )
    if pixels.size == 0:
        raise ImageError(f"{name}: the picture has no pixels.")
    return Image.fromarray(np.ascontiguousarray(pixels.reshape(pixels.shape[:2]) if grey else pixels))


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raise ``ImageError`` for a picture without pixels, or with more than ``max_pixels``."""
    if width < 1 or height < 1:
        raise ImageError(f"{name}: the picture has no pixels ({width} x {height}).")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} is more than the limit of {max_pixels:,} pixels. "
            "Save it smaller or raise max_pixels."
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Decode, then convert to 8-bit RGB (see the module's text for what that means)."""
    try:
        image.load()
    except Exception as error:  # on damaged files Pillow's decoders raise nearly anything
        raise ImageError(f"{name}: the picture is truncated or damaged ({error}). Replace the file.") from error
    sixteen_bit = image.mode in _SIXTEEN_BIT_MODES or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if sixteen_bit:
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ImageError(f"{name}: 32-bit samples (mode {image.mode}) have no fixed range. Save it with 8 or 16 bits.")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"{name}: cannot convert mode {image.mode} to RGB ({error}).") from error
