"""What a browser sends to the page: pictures, turned as they are shown, and frames of videos."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from PIL import Image, ImageOps

from sightbridge.errors import ImageError, SightbridgeError
from sightbridge.images.load import FORMATS, load_image
from sightbridge.images.video import sample_frames, video_frames
from sightbridge.scoring.pictures import VIDEOS
from sightbridge.serving.api.api_error import ApiError, to_api_error
from sightbridge.serving.api.files import StoredFile
from sightbridge.serving.api.state import State

FRAMES = 8
"""Pictures that a video gives: as many as for scores."""
FRAME_SIDE = 1344
"""Longest side of a frame, in pixels: LLaVA's page keeps pictures to it, and no vision tower sees more."""
PREVIEW_SIDE = 1280
ORIENTATION = 0x0112
"""The EXIF tag that says how a picture is turned."""

_working = CapacityLimiter(2)
"""Pictures that are turned or made small, and videos that are decoded, at the same time."""


def make_keeper(state: State) -> Callable[[Any], Any]:
    """A function that a component calls with a file that somebody chose: it answers with pictures, or an error."""

    async def keep(upload: Any) -> dict[str, Any]:
        try:
            name, data = upload.files[0][0][:200] or "the file", upload.files[0][1]
            is_video = Path(name).suffix.lower() in VIDEOS
            parts = await (_read_video(data, name) if is_video else _read_picture(data, name, state))
            return {"pictures": [await _keep(data, name, state) for name, data in parts]}
        except (ApiError, SightbridgeError) as error:
            return _told(error)
        except (AttributeError, IndexError, TypeError):
            return {"error": "Expected one file."}

    return keep


def make_looker(state: State) -> Callable[[Any], Any]:
    """A function that a component calls with the id of a file, to show it."""

    async def look(file_id: Any) -> dict[str, Any]:
        try:
            return await _describe(state.files.get(str(file_id)))
        except (ApiError, SightbridgeError) as error:
            return _told(error)

    return look


def _told(error: Exception) -> dict[str, Any]:
    known = to_api_error(error)
    assert known is not None, "pictures have no other errors"
    return {"error": known.message}


async def _keep(data: bytes, name: str, state: State) -> dict[str, Any]:
    return await _describe(state.files.add(StoredFile(data, name, "vision")))


async def _describe(file: StoredFile) -> dict[str, Any]:
    """What the page shows of a picture: that which a model sees, which a browser might show otherwise or not at all."""
    shown, (width, height) = await run_sync(_preview, file.data, limiter=_working)
    return {"file": file.id, "name": file.filename, "width": width, "height": height, "preview": shown}


def _preview(data: bytes) -> tuple[str, tuple[int, int]]:
    """The picture, made small if it is large, as a ``data:`` URL; and its size in pixels."""
    picture = load_image(data)
    size = picture.size
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    kind = "PNG" if max(size) <= PREVIEW_SIDE // 4 else "JPEG"
    file = io.BytesIO()
    picture.save(file, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}", size


async def _read_picture(data: bytes, name: str, state: State) -> list[tuple[str, bytes]]:
    await state.pictures.check(data, name)
    return [(name, await run_sync(upright, data, limiter=_working))]


def upright(data: bytes) -> bytes:
    """A picture turned as its EXIF tag says, like cameras mean it and browsers show it; without a tag, as it is.

    Models are trained on pictures whose tags nobody looks at, but those who draw on one must see what the model sees.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        if picture.getexif().get(ORIENTATION, 1) in (0, 1):
            return data
        turned = ImageOps.exif_transpose(picture).convert("RGB")
        file = io.BytesIO()
        options = {"quality": 95, "subsampling": 0} if picture.format == "JPEG" else {}
        turned.save(file, "JPEG" if picture.format == "JPEG" else "PNG", **options)
        return file.getvalue()


async def _read_video(data: bytes, name: str) -> list[tuple[str, bytes]]:
    frames = await run_sync(_frames, data, name, limiter=_working)
    return [(f"{name}, frame {number + 1} of {len(frames)}", frame) for number, frame in enumerate(frames)]


def _frames(data: bytes, name: str) -> list[bytes]:
    """Frames evenly spread over a video, as PNG; the file lies on the disk no longer than that takes."""
    with tempfile.TemporaryDirectory(prefix="sightbridge-video-") as folder:
        path = Path(folder) / f"video{Path(name).suffix.lower()}"
        path.write_bytes(data)
        try:
            video_frames(path, FRAMES)  # says so if PyAV is missing
            pixels = sample_frames(path, FRAMES)
        except SightbridgeError as error:
            raise ImageError(str(error).replace(str(path), name)) from error
    frames = []
    for frame in pixels:
        picture, file = Image.fromarray(frame), io.BytesIO()
        picture.thumbnail((FRAME_SIDE, FRAME_SIDE))
        picture.save(file, "PNG", compress_level=1)
        frames.append(file.getvalue())
    return frames
