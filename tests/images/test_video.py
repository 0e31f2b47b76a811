"""Videos: which frames are taken, how they are turned, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightbridge.errors import ImageError, SettingsError
from sightbridge.images import video
from sightbridge.images.load import load_image
from sightbridge.images.video import VideoFrame, middles, sample_frames, video_frames

av = pytest.importorskip("av")
GREY = 6
"""Frame n of a test's video has the grey level 6 n."""


def write_video(path: Path, frames: int, fps: int = 5, size: tuple[int, int] = (32, 48), gop: int = 12) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = size[0], size[1], "yuv420p", gop
        stream.bit_rate = 4_000_000
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), number * GREY % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def numbers(frames: Sequence[np.ndarray]) -> list[int]:
    """Which frames of the video these are."""
    return [round(float(frame.mean()) / GREY) for frame in frames]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_frames_are_spread_evenly_over_the_whole_video(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, frames=40)
    assert numbers(sample_frames(path, 4)) == [5, 15, 25, 35]
    assert numbers(sample_frames(path, 1)) == [20]
    # every 40 // 27-th frame from the first on, as the reference takes them, would end at frame 26
    assert numbers(sample_frames(path, 27))[-1] == 39


def test_a_short_video_shows_frames_more_than_once(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=3)
    assert numbers(sample_frames(path, 6)) == [0, 0, 1, 1, 2, 2]


def test_frames_far_apart_are_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", frames=40)
    straight = sample_frames(path, 5)
    monkeypatch.setattr(video, "SEEK_ABOVE", 0)
    monkeypatch.setattr(video, "MAX_DECODED", 40)
    assert all(np.array_equal(a, b) for a, b in zip(sample_frames(path, 5), straight, strict=True))


def test_a_frame_opens_like_any_picture_and_its_video_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", frames=10)
    decoded = []
    monkeypatch.setattr(video, "sample_frames", lambda *given: decoded.append(given) or sample_frames(*given))
    frames = video_frames(path, 5)
    images = [load_image(frame) for frame in frames]
    assert [image.size for image in images] == [(32, 48)] * 5
    assert numbers([np.asarray(image) for image in images]) == [1, 3, 5, 7, 9]
    assert len(decoded) == 1
    assert frames[1].name == f"{path}, frame 2 of 5"  # type: ignore[union-attr]


def test_a_video_filmed_sideways_is_turned(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=2)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44  # the track's matrix, sixteen bits behind the point: here a quarter turn
    turn = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    content[place : place + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in turn)
    path.write_bytes(content)
    assert sample_frames(path, 1)[0].shape == (32, 48, 3)


def test_a_folder_of_frames_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("RGB", (8, 8)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")

    def names(count: int) -> list[str]:
        return [frame.name for frame in video_frames(tmp_path, count)]

    assert names(3) == ["frame_2.png", "frame_6.png", "frame_10.png"]
    assert names(50) == [f"frame_{number}.png" for number in range(12)]


def test_middles_of_equal_stretches() -> None:
    assert middles(8, 4) == [1, 3, 5, 7]
    assert [int(place) for place in middles(63, 32)][-1] == 62
    assert middles(Fraction(1, 2), 1) == [Fraction(1, 4)]


def test_what_is_no_whole_video_is_refused(tmp_path: Path) -> None:
    good = write_video(tmp_path / "good.mkv", frames=40, size=(320, 240))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mkv").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:8,\n{good}\n#EXT-X-ENDLIST\n")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("text.mp4", "not a readable video"),
        ("cut.mkv", "ends at|not a readable video"),
        ("list.m3u8", "not a readable video"),
        ("none.mp4", "no such video file"),
        ("empty", "holds no frames"),
    ):
        with pytest.raises(ImageError, match=message) as caught:
            load_image(VideoFrame(tmp_path / name, 0, 4)) if name != "none.mp4" else sample_frames(tmp_path / name, 4)
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("bound", "value", "message"),
    [
        ("MAX_FILE_BYTES", 100, "larger than the limit"),
        ("MAX_SECONDS", 1, "is 8 s long"),
        ("MAX_HELD_BYTES", 1000, "more than the limit"),
        ("MAX_DECODED", 5, "frames to decode"),
    ],
)
def test_videos_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, message: str
) -> None:
    path = write_video(tmp_path / "a.mp4", frames=40)
    monkeypatch.setattr(video, bound, value)
    with pytest.raises(ImageError, match=message):
        sample_frames(path, 4)


def test_without_pyav_files_are_refused_and_folders_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    (tmp_path / "frames").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "frames" / "0.png")
    assert len(video_frames(tmp_path / "frames", 4)) == 1
    with pytest.raises(SettingsError, match="sightbridge\\[video\\]"):
        video_frames(tmp_path / "a.mp4", 4)
