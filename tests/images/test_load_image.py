"""Opening pictures: every mode becomes RGB, everything hostile becomes one clear ImageError."""

import base64
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sightbridge.errors import ImageError
from sightbridge.images.load import image_key, load_image


def noise(width=13, height=7, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + ihdr + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_same_pixels_from_every_kind_of_source(tmp_path, kind):
    pixels = noise()
    image = Image.fromarray(pixels)
    data = encoded(image, kind)
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(data)
    url = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    for source in (path, str(path), data, url, image, pixels):
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        assert np.array_equal(np.asarray(loaded), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_equal_pillow(kind):
    data = encoded(Image.fromarray(noise(40, 30)), kind)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(load_image(data)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes_convert_as_the_references_do(mode):
    image = Image.fromarray(noise(9, 9)).convert(mode)
    assert np.array_equal(np.asarray(load_image(image)), np.asarray(image.convert("RGB")))


def test_transparency_is_dropped_not_composited():
    image = Image.new("RGBA", (2, 2), (200, 100, 50, 0))
    assert load_image(image).getpixel((0, 0)) == (200, 100, 50)


def test_exif_orientation_is_not_applied():
    image = Image.fromarray(noise(20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert load_image(encoded(image, "JPEG", exif=exif)).size == (20, 10)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_keeps_its_high_byte(kind):
    values = np.array([[0, 255, 256, 40000, 65535]], dtype=np.uint16)
    loaded = load_image(encoded(Image.fromarray(values), kind))
    assert np.asarray(loaded)[0, :, 1].tolist() == [0, 0, 1, 156, 255]


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_grey_arrays():
    grey = noise(5, 4, 1)
    for pixels in (grey, grey[:, :, 0]):
        assert np.array_equal(np.asarray(load_image(pixels)), np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), "uint8"),
        (np.zeros((4, 4, 2), dtype=np.uint8), "channels"),
        (np.zeros((3, 224, 224), dtype=np.uint8), "channels"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "no pixels"),
    ],
)
def test_wrong_arrays(array, message):
    with pytest.raises(ImageError, match=message):
        load_image(array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404 not found</html>", "supported format.*DOCTYPE"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "supported format"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "supported format|damaged"),
        (encoded(Image.fromarray(noise(60, 60)), "PNG")[:2000], "truncated or damaged"),
        (encoded(Image.fromarray(noise(60, 60)), "JPEG")[:900], "truncated or damaged"),
        (encoded(Image.fromarray(noise(60, 60)), "GIF")[:1500], "truncated or damaged"),
        (encoded(Image.fromarray(noise(60, 60)), "BMP")[:2000], "truncated or damaged"),
        (encoded(Image.fromarray(noise(60, 60)), "PPM")[:2000], "truncated or damaged"),
        (encoded(Image.fromarray(noise(60, 60)), "TIFF")[:2000], "truncated|damaged|supported format"),
        (encoded(Image.fromarray(noise(60, 60)), "WEBP")[:900], "truncated|damaged|supported format"),
        (png_header(60_000, 60_000), "pixels"),
        (png_header(9000, 9000), "pixels"),
        (png_header(0, 5), "pixels|damaged|supported format"),
        (png_header(50, 50), "truncated or damaged"),
    ],
)
def test_hostile_files_are_one_clear_error(tmp_path, content, message):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as error:
        load_image(path)
    assert str(error.value).startswith(str(path))


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    data = encoded(Image.new("1", (8_001, 8_000)), "PNG")
    assert len(data) < 20_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="pixels"):
        load_image(data)


def test_bounds():
    data = encoded(Image.fromarray(noise(20, 10)), "PNG")
    assert load_image(data, max_pixels=200, max_bytes=len(data)).size == (20, 10)
    with pytest.raises(ImageError, match="20 x 10 is more than the limit of 199 pixels"):
        load_image(data, max_pixels=199)
    with pytest.raises(ImageError, match="limit of"):
        load_image(data, max_bytes=len(data) - 1)
    with pytest.raises(ImageError, match="limit of"):
        load_image("data:image/png;base64," + base64.b64encode(data * 9).decode(), max_bytes=len(data))
    with pytest.raises(ImageError, match="more than the limit"):
        load_image(noise(20, 10), max_pixels=199)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://example.org/a.jpg", "not fetched"),
        ("HTTP://example.org/a.jpg", "not fetched"),
        ("file:///etc/passwd", "not fetched"),
        ("data:image/png;base64,@@@@", "base64"),
        ("data:image/png,abc", "form"),
        ("nowhere/at/all.png", "no such picture"),
        ("x" * 5000, "cannot read|no such"),
        ("a\0b.png", "no such"),
    ],
)
def test_sources_that_are_no_picture(source, message):
    with pytest.raises(ImageError, match=message) as error:
        load_image(source)
    assert len(str(error.value)) < 400


def test_folders_and_pipes_are_refused(tmp_path):
    with pytest.raises(ImageError, match="folder"):
        load_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="no such picture"):
        load_image(tmp_path / "pipe.png")


def test_thirty_two_bit_samples_are_refused():
    with pytest.raises(ImageError, match="32-bit"):
        load_image(Image.fromarray(np.zeros((3, 3), dtype=np.float32)))


def test_image_key_tells_sources_apart(tmp_path):
    pixels = noise()
    image = Image.fromarray(pixels)
    assert image_key(pixels) == image_key(pixels.copy()) != image_key(pixels.transpose(1, 0, 2))
    assert image_key(image) == image_key(image.copy())
    assert image_key("a.png") != image_key("b.png")
    assert image_key(b"a") != image_key(b"b")
