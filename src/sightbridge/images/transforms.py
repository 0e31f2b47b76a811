"""From an RGB picture to the pixels a vision tower sees.

Resizing is Pillow's bicubic and the arithmetic is that of transformers' PIL image processors, so results are equal to
theirs bit for bit: fit ``squash`` is ``BlipImageProcessorPil`` (and, with other means, ``SiglipImageProcessorPil``),
``crop`` is ``CLIPImageProcessorPil``, ``pad`` is ``LlavaImageProcessorPil(do_pad=True)``. Their torchvision twins
resize differently; nothing here depends on torchvision.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightbridge.config.model import ImageSettings
from sightbridge.errors import ImageError
from sightbridge.images.load import MAX_PIXELS, ImageSource, load_image

CROP_RATIO = (3 / 4, 4 / 3)
"""Aspect ratios a random crop draws from (torchvision's ``RandomResizedCrop``, used by LAVIS)."""


class ImageTransform:
    """The fixed transform, for evaluation and for training without augmentation.

    ``transform(image)`` takes an RGB picture (as ``load_image`` returns it) and returns float32 (3, size, size).
    """

    def __init__(self, settings: ImageSettings) -> None:
        self.settings = settings
        # There are only 256 values per channel, so the scaling is done once, in the processors' order and precision.
        scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
        mean, std = np.array(settings.mean, dtype=np.float32), np.array(settings.std, dtype=np.float32)
        self._normalised = (scaled[:, None] - mean) / std  # (256, 3)

    def __call__(self, image: Image.Image) -> Tensor:
        return self.normalise(FITS[self.settings.fit](image, self.settings))

    def normalise(self, image: Image.Image) -> Tensor:
        """Scale an RGB picture to 0..1, subtract the mean, divide by the standard deviation: float32 (3, H, W)."""
        assert image.mode == "RGB", "load_image makes pictures RGB"
        pixels = np.asarray(image)
        return torch.from_numpy(np.stack([self._normalised[:, c][pixels[:, :, c]] for c in range(3)]))


class TrainTransform:
    """The training transform: a random resized crop, perhaps flipped, or the fixed transform if ``augment`` is none.

    What is drawn depends on ``seed`` and the call's arguments alone, so it is the same for any number of workers or
    processes and after a resume.
    """

    def __init__(self, settings: ImageSettings, seed: int = 0) -> None:
        self.settings = settings
        self.seed = seed
        self.fixed = ImageTransform(settings)

    def open(self, source: ImageSource, *, epoch: int, record_id: str, position: int = 0) -> Tensor:
        """Open a picture with ``load_image``, with its errors, and transform it."""
        return self(load_image(source), epoch=epoch, record_id=record_id, position=position)

    def __call__(self, image: Image.Image, *, epoch: int, record_id: str, position: int = 0) -> Tensor:
        """Transform the picture at ``position`` among the pictures of record ``record_id``: float32 (3, size, size)."""
        view = draw_view(
            self.settings, self.seed, image.width, image.height, epoch=epoch, record_id=record_id, position=position
        )
        if view is None:
            return self.fixed(image)
        image = _resize(image.crop(view.box), self.settings.size, self.settings.size)
        return self.fixed.normalise(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else image)


def train_transform(settings: ImageSettings, seed: int = 0) -> TrainTransform:
    """Return the training transform of ``settings``."""
    return TrainTransform(settings, seed)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale bytes (N, 3, H, W) to 0..1, subtract the mean, divide by the standard deviation, in float32, on any device.

    Equal to ``ImageTransform.normalise`` but for the last bit (below 1e-6).
    """
    by_channel = pixels.new_tensor([mean, std], dtype=torch.float32)[..., None, None]
    return (pixels.float() / 255 - by_channel[0]) / by_channel[1]


class View(NamedTuple):
    """What is seen of a picture: a box in pixels (left, top, right, bottom), mirrored or not."""

    box: tuple[int, int, int, int]
    flip: bool


def draw_view(
    settings: ImageSettings, seed: int, width: int, height: int, *, epoch: int, record_id: str, position: int
) -> View | None:
    """Draw what an epoch sees of a picture of ``width`` x ``height`` pixels; ``None`` if nothing is drawn."""
    if settings.augment == "none":
        return None
    draw = random.Random(f"{seed}/{epoch}/{position}/{record_id}")
    box = draw_crop(width, height, settings.crop_scale, draw)
    return View(box, settings.augment == "crop_flip" and draw.random() < 0.5)


def draw_crop(width: int, height: int, scale: tuple[float, float], draw: random.Random) -> tuple[int, int, int, int]:
    """Draw a box (left, top, right, bottom) as torchvision's ``RandomResizedCrop`` does.

    The area is a uniform share of the picture's, the aspect ratio log-uniform in ``CROP_RATIO``; after ten boxes that
    do not fit, the largest centred box within the ratios is taken.
    """
    for _ in range(10):
        area = width * height * draw.uniform(*scale)
        ratio = math.exp(draw.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * CROP_RATIO[1])))
    h = min(height, max(1, round(width / CROP_RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _squash(image: Image.Image, settings: ImageSettings) -> Image.Image:
    return _resize(image, settings.size, settings.size)


def _crop(image: Image.Image, settings: ImageSettings) -> Image.Image:
    width, height = shorter_side_size(image.width, image.height, settings.size)
    left, top = (width - settings.size) // 2, (height - settings.size) // 2
    return _resize(image, width, height).crop((left, top, left + settings.size, top + settings.size))


def shorter_side_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height once the shorter side has ``size`` pixels (the longer one rounds down); then the centre is cut.

    Raises ``ImageError`` for a picture so long that it would be huge.
    """
    shorter = min(width, height)
    new_width, new_height = int(size * width / shorter), int(size * height / shorter)
    check_area(new_width, new_height, width, height, "crop")
    return new_width, new_height


def _pad(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """Centre the picture on a square of the mean colour, then resize (LLaVA's expand2square)."""
    side = max(image.size)
    check_area(side, side, image.width, image.height, "pad")
    square = Image.new("RGB", (side, side), pad_colour(settings))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return _resize(square, settings.size, settings.size)


def pad_colour(settings: ImageSettings) -> tuple[int, int, int]:
    """The mean colour in bytes, fractions cut off, as LLaVA does."""
    red, green, blue = (int(channel * 255) for channel in settings.mean)
    return red, green, blue


FITS = {"squash": _squash, "crop": _crop, "pad": _pad}
"""How a picture of any shape becomes a square: ``(image, settings) -> image`` of ``size`` x ``size`` pixels."""


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)


def check_area(width: int, height: int, from_width: int, from_height: int, fit: str) -> None:
    """A long thin picture is small in itself but huge once it is scaled up or padded."""
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"picture of {from_width} x {from_height} pixels: too long and thin for the fit '{fit}' (it would pass "
            f"through {width} x {height} pixels). Crop it, or use the fit 'squash'."
        )
