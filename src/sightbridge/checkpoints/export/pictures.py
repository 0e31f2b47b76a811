"""Our image transform as an image processor of transformers: the same pixels, bit for bit, with its Pillow backend."""

from __future__ import annotations

from typing import Any

from PIL.Image import Resampling
from transformers import BlipImageProcessorPil, CLIPImageProcessorPil, LlavaImageProcessorPil

from sightbridge.config.model import ImageSettings

BACKEND_NOTE = (
    "Pictures are resized by Pillow, as here, if torchvision is not installed or the processor is loaded with "
    '`backend="pil"`; torchvision\'s resizing gives slightly other pixels.'
)


def image_processor(settings: ImageSettings) -> Any:
    """The image processor whose pixels are those of ``ImageTransform(settings)``."""
    side = {"height": settings.size, "width": settings.size}
    common: dict[str, Any] = {
        "do_resize": True,
        "resample": Resampling.BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(settings.mean),
        "image_std": list(settings.std),
        "do_convert_rgb": True,
    }
    if settings.fit == "squash":
        return BlipImageProcessorPil(size=side, **common)
    cropped = common | {"size": {"shortest_edge": settings.size}, "do_center_crop": True, "crop_size": side}
    if settings.fit == "crop":
        return CLIPImageProcessorPil(**cropped)
    return LlavaImageProcessorPil(do_pad=True, **cropped)
