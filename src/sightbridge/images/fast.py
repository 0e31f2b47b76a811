"""The fast way from a picture file to pixels, for training: two to three times the pictures per core.

JPEG files are decoded by libjpeg-turbo through ``simplejpeg`` (extra ``[fast]``; without it by Pillow, to the same
values), and resized by torch's antialiased bicubic kernel for bytes, which rounds a little differently from Pillow's:
by at most 2 of 255 grey levels. Pixels stay bytes; the vision tower normalises them where it runs (``normalise``).
What is refused is what ``load_image`` refuses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sightbridge.config.model import ImageSettings
from sightbridge.images.load import (
    MAX_BYTES,
    MAX_PIXELS,
    ImageSource,
    check_size,
    describe_source,
    load_image,
    read_bytes,
)
from sightbridge.images.transforms import TrainTransform, View, check_area, draw_view, pad_colour, shorter_side_size

PILLOW = int(PIL.__version__.split(".")[0])

try:
    import simplejpeg
except ImportError:
    simplejpeg: Any = None


def load_pixels(source: ImageSource, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Tensor:
    """Open ``source`` as RGB bytes (3, H, W), with the values that ``load_image`` gives; same bounds and errors."""
    if simplejpeg is None or isinstance(source, np.ndarray | Image.Image):
        return _to_tensor(np.asarray(load_image(source, max_pixels=max_pixels, max_bytes=max_bytes)))
    name = describe_source(source)
    data = read_bytes(source, name, max_bytes)
    pixels = _decode_jpeg(data, name, max_pixels) if data[:3] == b"\xff\xd8\xff" else None
    if pixels is None:
        pixels = np.asarray(load_image(data, max_pixels=max_pixels, max_bytes=max_bytes, name=name))
    return _to_tensor(pixels)


def _decode_jpeg(data: bytes, name: str, max_pixels: int) -> np.ndarray | None:
    """Decode an ordinary JPEG file; ``None`` for CMYK and damaged ones, which are left to Pillow to open or refuse."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    check_size(width, height, name, max_pixels)
    if colours not in ("YCbCr", "Gray", "RGB"):
        return None
    try:
        # Neither the fast DCT nor the fast upsampling: they change values. Strict: warnings are errors.
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
    except ValueError:
        return None


def _to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) to (3, H, W) without moving a byte: torch's kernel is fastest on this layout."""
    with_owner = pixels if pixels.flags.writeable else pixels.copy()  # torch has no read-only tensors
    return torch.from_numpy(with_owner).permute(2, 0, 1)


class FastTransform:
    """``TrainTransform`` on bytes: the same crops and flips, uint8 (3, size, size), not normalised."""

    def __init__(self, settings: ImageSettings, seed: int = 0) -> None:
        self.settings = settings
        self.seed = seed

    def open(self, source: ImageSource, *, epoch: int, record_id: str, position: int = 0) -> Tensor:
        """Open the picture at ``position`` of record ``record_id`` and transform it. Errors as for ``load_image``."""
        pixels = load_pixels(source)
        height, width = pixels.shape[1:]
        view = draw_view(self.settings, self.seed, width, height, epoch=epoch, record_id=record_id, position=position)
        return self.fit(pixels) if view is None else self.crop(pixels, view)

    def crop(self, pixels: Tensor, view: View) -> Tensor:
        """Cut out and resize what ``view`` says, and perhaps flip it."""
        left, top, right, bottom = view.box
        pixels = _resize(pixels[:, top:bottom, left:right], self.settings.size, self.settings.size)
        return pixels.flip(-1) if view.flip else pixels

    def fit(self, pixels: Tensor) -> Tensor:
        """Make the whole picture a square, as ``settings.fit`` says."""
        return FITS[self.settings.fit](pixels, self.settings)


TRAIN_TRANSFORMS = {"exact": TrainTransform, "fast": FastTransform}
"""By the setting ``data.decode``: ``(settings, seed)`` to what opens and transforms pictures while training."""


def _squash(pixels: Tensor, settings: ImageSettings) -> Tensor:
    return _resize(pixels, settings.size, settings.size)


def _crop(pixels: Tensor, settings: ImageSettings) -> Tensor:
    height, width = pixels.shape[1:]
    new_width, new_height = shorter_side_size(width, height, settings.size)
    left, top = (new_width - settings.size) // 2, (new_height - settings.size) // 2
    resized = _resize(pixels, new_width, new_height)
    return resized[:, top : top + settings.size, left : left + settings.size].contiguous()


def _pad(pixels: Tensor, settings: ImageSettings) -> Tensor:
    height, width = pixels.shape[1:]
    side = max(height, width)
    check_area(side, side, width, height, "pad")
    colour = torch.tensor(pad_colour(settings), dtype=torch.uint8)
    square = colour.expand(side, side, 3).clone().permute(2, 0, 1)
    left, top = (side - width) // 2, (side - height) // 2
    square[:, top : top + height, left : left + width] = pixels
    return _resize(square, settings.size, settings.size)


FITS = {"squash": _squash, "crop": _crop, "pad": _pad}
"""As ``transforms.FITS``, on bytes."""


def _resize(pixels: Tensor, width: int, height: int) -> Tensor:
    """Resize in two passes of one direction each, rounding to bytes between them, in the order that Pillow takes.

    Torch goes along the rows first, and so does Pillow, but since its version 13 not where the height shrinks by more
    than twice as many pixels as the width (python-pillow/Pillow#9549); the order is worth up to 9 grey levels.
    """
    from_height, from_width = pixels.shape[1:]
    if PILLOW >= 13 and from_height - height > 2 * max(0, from_width - width):
        pixels = _interpolate(pixels, from_width, height)
    return _interpolate(pixels, width, height).contiguous()


def _interpolate(pixels: Tensor, width: int, height: int) -> Tensor:
    return F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]
