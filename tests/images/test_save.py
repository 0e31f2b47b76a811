"""Pictures are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sightbridge.errors import ImageError
from sightbridge.images.save import save_picture

PICTURE = Image.new("RGB", (30, 20), (200, 10, 30))


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("new/folder/a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP")]
)
def test_formats_follow_the_name(tmp_path: Path, name: str, kind: str) -> None:
    save_picture(PICTURE, tmp_path / name)
    with Image.open(tmp_path / name) as written:
        assert written.size == (30, 20)
        assert written.format == kind
    assert [path.name for path in (tmp_path / name).parent.iterdir() if path.is_file()] == [Path(name).name]


def test_what_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.gif: pictures are written as \.png, \.jpg, \.jpeg, \.webp"):
        save_picture(PICTURE, tmp_path / "a.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="cannot write the picture"):
        save_picture(PICTURE, tmp_path / "file" / "a.png")
    with pytest.raises(ImageError, match=r"a\.webp: WEBP holds 16383 pixels a side, not 20000\. Write it as \.png"):
        save_picture(Image.new("RGB", (20000, 1)), tmp_path / "a.webp")
    (tmp_path / "old.png").write_bytes(b"old")
    with pytest.raises(OSError, match="cannot write mode"):
        save_picture(Image.new("HSV", (4, 4)), tmp_path / "old.png")
    assert (tmp_path / "old.png").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "old.png"]
