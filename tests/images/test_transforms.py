"""The transforms equal transformers' PIL processors bit for bit; random crops depend on their seed alone."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipImageProcessorPil, CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil

from sightbridge.config.model import ImageSettings
from sightbridge.errors import ImageError
from sightbridge.images.load import load_image
from sightbridge.images.transforms import CROP_RATIO, ImageTransform, draw_crop, train_transform

GOLDEN = Path(__file__).parents[1] / "golden" / "llava" / "pixels"
HALF = (0.5, 0.5, 0.5)
PROCESSORS = {
    "squash": (
        ImageSettings(size=30, fit="squash"),
        lambda: BlipImageProcessorPil(size={"height": 30, "width": 30}),
    ),
    "siglip": (
        ImageSettings(size=30, fit="squash", mean=HALF, std=HALF),
        lambda: SiglipImageProcessorPil(size={"height": 30, "width": 30}),
    ),
    "crop": (
        ImageSettings(size=31, fit="crop"),
        lambda: CLIPImageProcessorPil(size={"shortest_edge": 31}, crop_size={"height": 31, "width": 31}),
    ),
    "pad": (
        ImageSettings(size=30, fit="pad"),
        lambda: LlavaImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}, do_pad=True),
    ),
}


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pictures():
    shapes = [(1, 1), (1, 50), (50, 1), (30, 30), (31, 31), (17, 40), (101, 64), (64, 99), (200, 33), (7, 5)]
    plain = [noise(w, h, seed) for seed, (w, h) in enumerate(shapes)]
    grey = noise(45, 23).convert("L")
    palette = noise(45, 23).convert("P")
    transparent = noise(23, 45).convert("RGBA")
    transparent.putalpha(grey.resize((23, 45)))
    return plain + [load_image(image) for image in (grey, palette, transparent)]


@pytest.mark.parametrize("name", PROCESSORS)
def test_parity_with_transformers_pil_processors(name):
    settings, build = PROCESSORS[name]
    transform, processor = ImageTransform(settings), build()
    difference = 0.0
    for image in pictures():
        ours = transform(image)
        theirs = processor(image, return_tensors="pt").pixel_values[0]
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape == (3, settings.size, settings.size)
        difference = max(difference, (ours - theirs).abs().max().item())
    print(f"parity {name}: {difference:.2e}")
    assert difference == 0.0


def test_parity_with_llava_reference_pixels():
    """expected.npz: what the reference's own preprocessing made of these files ("pad" and "square" there)."""
    expected = np.load(GOLDEN / "expected.npz")
    difference = 0.0
    for name in expected.files:
        fit, picture = name.split("_")
        pixels = ImageTransform(ImageSettings(size=56, fit=fit))(load_image(GOLDEN / f"{picture}.png"))
        difference = max(difference, np.abs(pixels.numpy() - expected[name]).max())
    print(f"parity LLaVA pixels: {difference:.2e}")
    assert difference == 0.0


def test_pad_fills_with_the_mean_colour():
    white = Image.new("RGB", (10, 30), "white")
    pixels = ImageTransform(ImageSettings(size=30, fit="pad", mean=(0, 0, 0), std=(1, 1, 1)))(white)
    assert pixels[:, 15, 15].tolist() == [1, 1, 1] and pixels[:, 15, 0].tolist() == [0, 0, 0]
    settings = ImageSettings(size=30, fit="pad")
    border = ImageTransform(settings)(white)[:, 15, 0] * torch.tensor(settings.std) + torch.tensor(settings.mean)
    assert (border * 255).round().tolist() == [122, 116, 104]


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_long_thin_picture_does_not_eat_the_memory(fit):
    with pytest.raises(ImageError, match="too long and thin"):
        ImageTransform(ImageSettings(size=224, fit=fit))(Image.new("RGB", (1, 60_000)))


def test_training_draw_depends_on_seed_epoch_and_record_alone():
    settings = ImageSettings(size=16, augment="crop_flip", crop_scale=(0.3, 0.9))
    image = noise(40, 30)
    first = train_transform(settings, seed=1)(image, epoch=0, record_id="a")
    random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(first, train_transform(settings, seed=1)(image, epoch=0, record_id="a"))
    others = [
        train_transform(settings, seed=2)(image, epoch=0, record_id="a"),
        train_transform(settings, seed=1)(image, epoch=1, record_id="a"),
        train_transform(settings, seed=1)(image, epoch=0, record_id="b"),
        train_transform(settings, seed=1)(image, epoch=0, record_id="a", position=1),
    ]
    assert first.shape == (3, 16, 16)
    assert not any(torch.equal(first, other) for other in others)


def test_without_augmentation_training_equals_evaluation():
    settings = ImageSettings(size=16, fit="pad")
    image = noise(40, 30)
    assert torch.equal(train_transform(settings)(image, epoch=3, record_id="a"), ImageTransform(settings)(image))


def test_crop_alone_never_flips_and_crop_flip_flips_about_half():
    image = Image.new("RGB", (40, 40), "black")
    image.paste("white", (0, 0, 20, 40))  # bright on the left

    def flipped(augment):
        settings = ImageSettings(size=8, augment=augment, crop_scale=(0.9, 1.0))
        views = [train_transform(settings)(image, epoch=epoch, record_id="a") for epoch in range(100)]
        return sum(bool(view[0, :, 0].mean() < view[0, :, -1].mean()) for view in views)

    assert flipped("crop") == 0
    assert 30 < flipped("crop_flip") < 70


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (1, 1), (1, 500), (500, 3)])
def test_drawn_boxes_lie_inside_and_keep_scale_and_ratio(size):
    width, height = size
    shares = []
    for seed in range(300):
        left, top, right, bottom = draw_crop(width, height, (0.5, 1.0), random.Random(seed))
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        if min(size) > 100:
            shares.append((right - left) * (bottom - top) / (width * height))
            assert CROP_RATIO[0] - 0.01 < (right - left) / (bottom - top) < CROP_RATIO[1] + 0.01
    if shares:
        assert min(shares) > 0.49 and 0.55 < sum(shares) / len(shares) < 0.85
