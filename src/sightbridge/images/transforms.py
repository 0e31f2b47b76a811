"""From an RGB picture to the pixels a vision tower sees.

Resizing is Pillow's bicubic and the arithmetic is that of transformers' PIL image processors, so results are equal to
theirs bit for bit: fit ``squash`` is ``BlipImageProcessorPil`` (and, with other means, ``SiglipImageProcessorPil``),
``crop`` is ``CLIPImageProcessorPil``, ``pad`` is ``LlavaImageProcessorPil(do_pad=True)``. Their torchvision twins
resize differently; nothing here depends on torchvision.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightbridge.config.model import ImageSettings
from sightbridge.errors import ImageError
from sightbridge.images.load import MAX_PIXELS

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

    def __call__(self, image: Image.Image, *, epoch: int, record_id: str, position: int = 0) -> Tensor:
        """Transform the picture at ``position`` among the pictures of record ``record_id``: float32 (3, size, size)."""
        if self.settings.augment == "none":
            return self.fixed(image)
        draw = random.Random(f"{self.seed}/{epoch}/{position}/{record_id}")
        box = draw_crop(image.width, image.height, self.settings.crop_scale, draw)
        image = _resize(image.crop(box), self.settings.size, self.settings.size)
        if self.settings.augment == "crop_flip" and draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self.fixed.normalise(image)


def train_transform(settings: ImageSettings, seed: int = 0) -> TrainTransform:
    """Return the training transform of ``settings``."""
    return TrainTransform(settings, seed)


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
    """Resize the shorter side to ``size`` (the longer one rounds down), then cut out the centre."""
    shorter = min(image.size)
    width, height = (int(settings.size * side / shorter) for side in image.size)
    _check_area(width, height, image, "crop")
    left, top = (width - settings.size) // 2, (height - settings.size) // 2
    return _resize(image, width, height).crop((left, top, left + settings.size, top + settings.size))


def _pad(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """Centre the picture on a square of the mean colour (fractions cut off), then resize (LLaVA's expand2square)."""
    side = max(image.size)
    _check_area(side, side, image, "pad")
    colour = tuple(int(channel * 255) for channel in settings.mean)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return _resize(square, settings.size, settings.size)


FITS = {"squash": _squash, "crop": _crop, "pad": _pad}
"""How a picture of any shape becomes a square: ``(image, settings) -> image`` of ``size`` x ``size`` pixels."""


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _check_area(width: int, height: int, image: Image.Image, fit: str) -> None:
    """A long thin picture is small in itself but huge once it is scaled up or padded."""
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"picture of {image.width} x {image.height} pixels: too long and thin for the fit '{fit}' (it would pass "
            f"through {width} x {height} pixels). Crop it, or use the fit 'squash'."
        )
