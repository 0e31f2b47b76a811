"""The pictures to score: found, named, checked before anything is computed, and opened in threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightbridge.errors import ImageError
from sightbridge.images.load import (
    MAX_PIXELS,
    ImageSource,
    check_size,
    describe_source,
    image_key,
    load_image,
    pictures_in,
    read_bytes,
)
from sightbridge.images.video import video_frames

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m4v", ".ts", ".flv", ".wmv", ".ogv")
"""Endings of files that are taken for videos; a GIF is a picture, its first frame."""
KEPT_BYTES = 2**30
"""Pixels that the check before a run keeps, so that these pictures are not opened again."""


class Picture(NamedTuple):
    """A picture and what it is called in tables and messages."""

    name: str
    source: ImageSource

    @property
    def key(self) -> str:
        """Equal for equal sources; a Pillow picture that cannot be decoded equals itself alone."""
        try:
            return image_key(self.source)
        except (OSError, SyntaxError, ValueError):
            return f"damaged:{id(self.source)}"


def find_pictures(given: Sequence[ImageSource], frames: int = 8) -> list[Picture]:
    """Name pictures; a folder stands for those in it, by name, and a video file for frames evenly spread over it.

    A ``.npy`` file holds pixels (H, W, 3) in the order blue, green, red, as OpenCV and t2v_metrics keep them.

    Raises ``ImageError`` for what is no picture, a folder without pictures, a ``.npy`` file that cannot be read, and
    ``SettingsError`` for a video if PyAV is missing.
    """
    found: list[Picture] = []
    for source in given:
        if not isinstance(source, ImageSource):
            raise ImageError(
                f"{source!r} is no picture: expected a file, bytes, a Pillow picture or an array of pixels."
            )
        path = Path(source) if isinstance(source, str | Path) and not str(source).startswith("data:") else None
        if path is None:
            found.append(Picture(describe_source(source), source))
        elif path.suffix.lower() == ".npy":
            found.append(Picture(str(path), _read_array(path)))
        elif path.suffix.lower() in VIDEOS and not path.is_dir():
            found += [Picture(describe_source(frame), frame) for frame in video_frames(path, frames)]
        elif path.is_dir():
            found += [Picture(str(file), file) for file in pictures_in(path)]
        else:
            found.append(Picture(str(path), path))
    return found


def _read_array(path: Path) -> np.ndarray:
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot read an array of pixels ({error}). Replace the file.") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f"{path}: expected uint8 pixels (height, width, 3), got {pixels.dtype} {pixels.shape}.")
    check_size(pixels.shape[1], pixels.shape[0], str(path), MAX_PIXELS)
    return np.ascontiguousarray(pixels[:, :, ::-1])


class Pictures:
    """Pixels of numbered pictures.

    Args:
        pictures: each of them once.
        transform: from an RGB picture to pixels (3, H, W).
    """

    def __init__(self, pictures: Sequence[Picture], transform: Callable[[Image.Image], Tensor]) -> None:
        self.pictures = pictures
        self.transform = transform
        self.kept: dict[int, Tensor] = {}

    def check(self, numbers: Sequence[int]) -> dict[int, str]:
        """Open pictures, keeping their pixels while there is room; returns what is wrong with those that are broken."""
        broken: dict[int, str] = {}
        room = KEPT_BYTES
        for number, opened in zip(numbers, _in_threads(self._try, numbers), strict=True):
            if isinstance(opened, str):
                broken[number] = opened
            elif (size := opened.nbytes) <= room:
                self.kept[number] = opened
                room -= size
        return broken

    def batches(self, numbers: Sequence[int], batch_size: int) -> Iterator[Tensor]:
        """Yield pixels (n, 3, H, W) of pictures that were checked, in order; they are not kept any longer."""
        for start in range(0, len(numbers), batch_size):
            yield torch.stack(list(_in_threads(self._take, numbers[start : start + batch_size])))

    def hashes(self, numbers: Sequence[int]) -> dict[int, str]:
        """Hash what each picture is made of; one that cannot be read has no hash, and is left to ``check``."""
        found = zip(numbers, _in_threads(self._hash, numbers), strict=True)
        return {number: content for number, content in found if content is not None}

    def _try(self, number: int) -> Tensor | str:
        try:
            return self._open(number)
        except ImageError as error:
            return str(error)

    def _open(self, number: int) -> Tensor:
        picture = self.pictures[number]
        opened = load_image(picture.source, name=picture.name)
        try:
            return self.transform(opened)
        except ImageError as error:  # too long and thin to be scaled
            raise ImageError(f"{picture.name}: {error}") from error

    def _take(self, number: int) -> Tensor:
        kept = self.kept.pop(number, None)
        return self._open(number) if kept is None else kept

    def _hash(self, number: int) -> str | None:
        source = self.pictures[number].source
        if isinstance(source, np.ndarray | Image.Image):
            return self.pictures[number].key
        try:
            return hashlib.sha256(read_bytes(source, self.pictures[number].name)).hexdigest()
        except ImageError:
            return None


def _in_threads(function: Callable[[int], object], numbers: Sequence[int]) -> Iterator:
    """Map over pictures in threads; Pillow and the hashes leave the interpreter to others while they work."""
    if len(numbers) < 2:
        yield from map(function, numbers)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(function, numbers)
