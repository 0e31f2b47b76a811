"""Pictures out of a video: a few frames, evenly spread over it, from a video file or a folder of frames.

Files are read by PyAV (extra ``[video]``): its wheels bring FFmpeg along, where torchcodec needs one installed, and it
gives exact times, where OpenCV counts frames from an estimate. A hostile file is bounded before and while it is
decoded, and only containers are opened, no playlists, which could name other files or addresses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sightbridge.errors import ImageError, SettingsError
from sightbridge.images.load import ENDINGS, StoredImage

CONTAINERS = "matroska,webm,mov,mp4,avi,mpegts,mpeg,flv,asf,ogg,gif"
"""FFmpeg's names of the formats that are opened."""
MAX_FILE_BYTES = 4 * 2**30
"""Bound on the size of a video file."""
MAX_SECONDS = 4 * 3600
"""Bound on its length."""
MAX_HELD_BYTES = 2**30
"""Bound on the frames of one video that are held at once, three bytes a pixel."""
MAX_DECODED = 100_000
"""Bound on the frames that are decoded to find those asked for."""
SEEK_ABOVE = 10
"""Frames further apart than so many seconds are sought one by one; otherwise all between them are decoded."""


@dataclass(frozen=True)
class VideoFrame(StoredImage):
    """The picture in the middle of the ``index``-th of ``count`` equal stretches of the video file ``path``."""

    path: Path
    index: int
    count: int

    @property
    def name(self) -> str:
        """File and place."""
        return f"{self.path}, frame {self.index + 1} of {self.count}"

    def read(self, limit: int) -> bytes:
        """Return the frame as a PPM picture; raises ``ImageError`` as ``sample_frames``."""
        return _held_frames(self.path, self.path.stat().st_mtime_ns, self.count)[self.index]


def video_frames(path: Path, count: int) -> list[Path] | list[VideoFrame]:
    """At most ``count`` pictures, evenly spread over a video, without opening it.

    A file gives ``count`` of them, some alike if it is shorter; a folder gives those of its pictures, in the order of
    the numbers in their names, and no picture twice. One without pictures is found out when it is opened, like any
    damaged file. Raises ``SettingsError`` if files cannot be read because PyAV is missing.
    """
    files = path.iterdir() if path.is_dir() else []
    frames = sorted((file for file in files if file.suffix.lower() in ENDINGS), key=_by_number)
    if not frames:
        if find_spec("av") is None:
            raise SettingsError(
                f"{path}: videos need PyAV: pip install 'sightbridge[video]', or give folders of frames."
            )
        return [VideoFrame(path, index, count) for index in range(count)]
    count = min(count, len(frames))
    return [frames[int(place)] for place in middles(len(frames), count)]


def middles(length: int | Fraction, count: int) -> list[Fraction]:
    """The middles of ``count`` equal stretches of a ``length``.

    MiniGPT4Qwen takes every n-th frame from the first on, n rounded down, so that up to half of a video's end is never
    seen: with 63 frames and 32 pictures, the last 31.
    """
    return [Fraction(2 * index + 1, 2 * count) * length for index in range(count)]


@lru_cache(maxsize=1)  # the frames of a video are asked for one after the other
def _held_frames(path: Path, changed: int, count: int) -> tuple[bytes, ...]:
    return tuple(_as_ppm(frame) for frame in sample_frames(path, count))


def sample_frames(path: Path, count: int) -> list[np.ndarray]:
    """Decode ``count`` frames, evenly spread over a video file: RGB bytes (H, W, 3) each, turned as they are shown.

    Raises ``ImageError``, naming the file, if it is missing, damaged, cut off, no video, or beyond the bounds above.
    """
    import av
    from av.error import FFmpegError

    if path.is_dir():
        raise ImageError(f"{path}: holds no frames; expected pictures ({', '.join(ENDINGS)}).")
    if not path.is_file():
        raise ImageError(f"{path}: no such video file. Check the path and the 'images' folder of the data source.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ImageError(f"{path}: larger than the limit of {MAX_FILE_BYTES:,} bytes. Cut it or save it smaller.")
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        with av.open(f"file:{path.absolute()}", options=options, metadata_errors="replace") as container:
            if not container.streams.video:
                raise ImageError(f"{path}: holds no pictures. Expected a video.")
            return _sample(container, container.streams.video[0], count, path)
    except (FFmpegError, OSError) as error:
        raise ImageError(f"{path}: not a readable video ({error}). Replace the file.") from error


def _sample(container: Any, stream: Any, count: int, path: Path) -> list[np.ndarray]:
    """Decode forward and keep what is shown at each of the times wanted."""
    _check_size(stream, count, path)
    start = Fraction(stream.start_time or 0) * stream.time_base
    length = _length(container, stream, start, path)
    times = [start + middle for middle in middles(length, count)]
    seeks = length / count > SEEK_ABOVE
    chosen: list[np.ndarray] = []
    decoded = 0
    for wanted in [[time] for time in times] if seeks else [times]:
        container.seek(int(wanted[0] / stream.time_base) if seeks else 0, stream=stream)
        shown, shown_at = None, start
        for frame in container.decode(stream):
            decoded += 1
            if decoded > MAX_DECODED:
                raise ImageError(f"{path}: more than {MAX_DECODED:,} frames to decode for {count}. Cut the video.")
            shown_at = start if frame.pts is None else frame.pts * stream.time_base
            while wanted and shown_at > wanted[0]:
                chosen.append(_pixels(frame if shown is None else shown))
                wanted = wanted[1:]
            shown = frame
            if not wanted:
                break
        if shown is None or (wanted and wanted[-1] - shown_at > max(Fraction(2), length / 10)):
            raise ImageError(f"{path}: ends at {float(shown_at):.1f} of {float(length):.1f} s. Replace the file.")
        chosen += [_pixels(shown)] * len(wanted)  # the last frame is shown until the end
    return chosen


def _check_size(stream: Any, count: int, path: Path) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if 3 * width * height * count > MAX_HELD_BYTES:
        raise ImageError(
            f"{path}: {count} frames of {width} x {height} pixels are more than the limit of {MAX_HELD_BYTES:,} bytes. "
            "Save it smaller or take fewer frames (frames of the data source)."
        )


def _length(container: Any, stream: Any, start: Fraction, path: Path) -> Fraction:
    """Length in seconds: as the stream says, or the file, or as its last packet shows."""
    if stream.duration:
        length = stream.duration * stream.time_base
    elif container.duration:
        length = Fraction(container.duration, 1_000_000)
    else:
        ends = [(p.pts + (p.duration or 0)) * stream.time_base for p in container.demux(stream) if p.pts is not None]
        length = max(ends, default=start) - start
    if not 0 < length <= MAX_SECONDS:
        raise ImageError(f"{path}: is {float(length):.0f} s long, expected more than 0 and at most {MAX_SECONDS:,} s.")
    return length


def _pixels(frame: Any) -> np.ndarray:
    """RGB of a frame, turned as its display matrix says (phones film sideways)."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _as_ppm(pixels: np.ndarray) -> bytes:
    """The plainest picture file: nothing is compressed, so nothing takes time or is lost."""
    return b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + np.ascontiguousarray(pixels).tobytes()


def _by_number(file: Path) -> list[tuple[int, int, str]]:
    """Put frame_2 before frame_10."""
    parts = re.split(r"(\d+)", file.name)
    return [(0, int(text), "") if text.isascii() and text.isdigit() else (1, 0, text) for text in parts]
