"""The fast path gives what the exact one gives, but for 2 grey levels, and refuses what that refuses."""

import io
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightbridge.config.model import ImageSettings
from sightbridge.errors import ImageError
from sightbridge.images import fast
from sightbridge.images.fast import FastTransform, load_pixels
from sightbridge.images.load import load_image
from sightbridge.images.transforms import ImageTransform, TrainTransform, normalise

SHAPES = [(640, 480), (427, 640), (333, 500), (224, 224), (90, 61)]
ONE = (1.0, 1.0, 1.0)
ZERO = (0.0, 0.0, 0.0)


def scene(width, height, seed=0):
    """Something like a photograph: smooth shading, hard edges, fine texture, a little noise."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    picture = np.stack([np.sin(draw.uniform(1, 9) * x + draw.uniform(1, 9) * y + phase) for phase in range(3)], -1)
    for _ in range(12):
        left, top, size = draw.uniform(0, 1, 3)
        inside = (abs(x - left) < size / 4) & (abs(y - top) < size / 6)
        picture[inside] = draw.uniform(-1, 1, 3) + 0.3 * np.sin(300 * x[inside] * size)[:, None]
    picture = 127.5 + 120 * picture + draw.normal(0, 4, picture.shape)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **({"quality": 90} | options))
    return file.getvalue()


def pictures():
    yield from (jpeg(scene(width, height, seed)) for seed, (width, height) in enumerate(SHAPES))
    if find_spec("sklearn"):  # brings two real photographs
        examples = import_module("sklearn.datasets").load_sample_images().images
        yield from (jpeg(Image.fromarray(photograph)) for photograph in examples)


@pytest.mark.parametrize("shape", [(100, 150), (100, 151), (427, 640), (440, 640), (50, 200), (90, 300), (40, 41)])
def test_parity_of_the_order_of_passes(shape):
    """Noise shows which direction Pillow resized first: the wrong order is off by far more than 2 grey levels."""
    noise = np.random.default_rng(0).integers(0, 256, (*shape[::-1], 3), dtype=np.uint8)
    settings = ImageSettings(size=50, mean=ZERO, std=ONE)
    exact = ImageTransform(settings)(Image.fromarray(noise))
    quick = FastTransform(settings).open(noise, epoch=0, record_id="a")
    assert (levels(exact) - quick.int()).abs().max() <= 2


def levels(pixels):
    """Grey levels 0..255 of exact pixels that were normalised by nothing."""
    return (pixels * 255).round().to(torch.int)


@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize(
    "settings", [{"fit": "squash"}, {"fit": "crop"}, {"fit": "pad"}, {"augment": "crop_flip"}], ids=str
)
def test_parity_with_the_exact_path(settings, size):
    exact_settings = ImageSettings(size=size, mean=ZERO, std=ONE, **settings)
    exact, quick = TrainTransform(exact_settings, seed=3), FastTransform(exact_settings, seed=3)
    largest, mean = 0, []
    for number, data in enumerate(pictures()):
        for epoch in range(3 if "augment" in settings else 1):
            where = {"epoch": epoch, "record_id": str(number)}
            pixels = quick.open(data, **where)
            assert pixels.dtype == torch.uint8 and pixels.shape == (3, size, size)
            difference = (levels(exact.open(data, **where)) - pixels.int()).abs()
            largest = max(largest, int(difference.max()))
            mean.append(float(difference.float().mean()))
    print(f"parity fast path {settings} {size}: at most {largest} grey levels, {max(mean):.4f} on average")
    assert largest <= 2
    assert max(mean) < 0.05


def test_flips_and_epochs_are_those_of_the_exact_path():
    """Crops that differed by a pixel would pass the comparison above on smooth pictures; noise tells them apart."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    settings = ImageSettings(size=40, mean=ZERO, std=ONE, augment="crop_flip")
    seen = set()
    for epoch in range(8):
        exact = TrainTransform(settings, 1)(noise, epoch=epoch, record_id="a", position=1)
        quick = FastTransform(settings, 1).open(noise, epoch=epoch, record_id="a", position=1)
        assert (levels(exact) - quick.int()).abs().max() <= 2
        seen.add(quick.numpy().tobytes())
    assert len(seen) == 8


def variants():
    photograph = scene(64, 48)
    yield "4:2:0", jpeg(photograph, subsampling=2)
    yield "4:4:4", jpeg(photograph, subsampling=0)
    yield "progressive", jpeg(photograph, progressive=True)
    yield "grey", jpeg(photograph.convert("L"))
    yield "cmyk", jpeg(photograph.convert("CMYK"))
    yield "odd size", jpeg(scene(63, 47))
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "turned by EXIF", jpeg(photograph, exif=exif)
    file = io.BytesIO()
    photograph.convert("RGBA").save(file, "PNG")
    yield "png", file.getvalue()


@pytest.mark.parametrize("with_simplejpeg", [True, False])
def test_parity_of_decoded_pixels(monkeypatch, with_simplejpeg):
    if not with_simplejpeg:
        monkeypatch.setattr(fast, "simplejpeg", None)
    for name, data in variants():
        pixels = load_pixels(data).permute(1, 2, 0).numpy()
        assert np.array_equal(pixels, np.asarray(load_image(data))), name


def test_every_kind_of_source(tmp_path):
    image = scene(30, 20)
    (tmp_path / "a.jpg").write_bytes(jpeg(image))
    for source in (tmp_path / "a.jpg", image, np.asarray(image), jpeg(image)):
        assert np.array_equal(load_pixels(source).permute(1, 2, 0).numpy(), np.asarray(load_image(source)))


def test_refuses_what_the_exact_path_refuses(tmp_path, monkeypatch):
    whole = jpeg(scene(64, 48))
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    sources = [
        tmp_path / "cut.jpg",
        tmp_path / "none.jpg",
        b"",
        whole[:30],
        b"\xff\xd8\xff" + b"x" * 500,
        "http://x/a.jpg",
    ]
    for source in sources:
        with pytest.raises(ImageError) as exact:
            load_image(source)
        with pytest.raises(ImageError) as quick:
            load_pixels(source)
        assert str(quick.value) == str(exact.value)
    with pytest.raises(ImageError, match="larger than the limit of 100 bytes"):
        load_pixels(whole, max_bytes=100)
    monkeypatch.setattr(fast.simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded before the check"))
    with pytest.raises(ImageError, match="64 x 48 is more than the limit of 3,000 pixels"):
        load_pixels(whole, max_pixels=3000)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_long_thin_pictures_are_refused_before_they_grow(fit):
    thin = Image.new("RGB", (20_000, 1))
    with pytest.raises(ImageError, match=f"too long and thin for the fit '{fit}'"):
        FastTransform(ImageSettings(size=224, fit=fit)).open(thin, epoch=0, record_id="a")


def test_parity_of_normalising_bytes():
    """All 256 values of all channels, against what equals transformers' processors."""
    settings = ImageSettings(size=16)
    values = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    pixels = torch.stack([values, values.flip(0), values.T])
    exact = ImageTransform(settings).normalise(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    difference = (normalise(pixels[None], settings.mean, settings.std)[0] - exact).abs().max().item()
    print(f"parity normalise: {difference:.1e}")
    assert difference < 1e-6


def test_a_picture_of_the_repository():
    """Pixels of a PNG, which no JPEG decoder touches, through the fast kernels."""
    path = next((Path(__file__).parents[1] / "golden" / "llava" / "pixels").glob("*.png"))
    settings = ImageSettings(size=56, mean=ZERO, std=ONE)
    exact, quick = TrainTransform(settings), FastTransform(settings)
    where = {"epoch": 0, "record_id": "a"}
    assert (levels(exact.open(path, **where)) - quick.open(path, **where).int()).abs().max() <= 2
