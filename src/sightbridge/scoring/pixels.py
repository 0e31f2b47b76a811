"""Pixels of a picture that is still being made, to what a tower sees, with gradients all the way."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sightbridge.config.model import ImageSettings
from sightbridge.images.transforms import pad_colour, shorter_side_size


def fit_pixels(pixels: Tensor, settings: ImageSettings) -> Tensor:
    """Fit and normalise pixels (M, 3, H, W) in 0..1: (M, 3, size, size).

    The same steps as for a file, by PyTorch's bicubic with antialiasing in place of Pillow's, which rounds to bytes
    after each of its two passes: up to two grey levels of 255 lie between them. Pixels of the right size are not
    resampled.
    """
    size, (height, width) = settings.size, pixels.shape[-2:]
    if settings.fit == "pad" and height != width:
        side = max(height, width)
        square = (pixels.new_tensor(pad_colour(settings)) / 255).view(1, 3, 1, 1).repeat(len(pixels), 1, side, side)
        top, left = (side - height) // 2, (side - width) // 2
        square[:, :, top : top + height, left : left + width] = pixels
        pixels = square
    elif settings.fit == "crop":
        width, height = shorter_side_size(width, height, size)
        pixels = _resize(pixels, height, width)
        top, left = (height - size) // 2, (width - size) // 2
        pixels = pixels[:, :, top : top + size, left : left + size]
    mean, std = (pixels.new_tensor(numbers).view(1, 3, 1, 1) for numbers in (settings.mean, settings.std))
    return (_resize(pixels, size, size) - mean) / std


def _resize(pixels: Tensor, height: int, width: int) -> Tensor:
    if pixels.shape[-2:] == (height, width):
        return pixels
    # what overshoots is cut off, as it is in bytes
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
