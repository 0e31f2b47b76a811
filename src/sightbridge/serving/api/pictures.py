"""From what a request says about pictures to encoded pictures that are known to open."""

from __future__ import annotations

from collections.abc import Sequence

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from sightbridge.config.serving import ServingSettings
from sightbridge.data.marks import Drawing, drawing
from sightbridge.errors import DataError, ImageError
from sightbridge.images.load import load_image, read_bytes
from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.files import Files
from sightbridge.serving.api.remote import Remote
from sightbridge.serving.engines.request import Request
from sightbridge.visual_prompts import Mark
from sightbridge.visual_prompts.region import place

DECODED_AT_ONCE = 4
"""Pictures that are decoded at the same time: with the bound on pixels, this bounds memory."""


class Pictures:
    """Reads the pictures of requests: ``data:`` URLs, uploaded files, URLs of allowed hosts. Never a path."""

    def __init__(self, settings: ServingSettings, files: Files, remote: Remote) -> None:
        self.settings = settings
        self.files = files
        self.remote = remote
        self._decoding = CapacityLimiter(DECODED_AT_ONCE)

    async def read(self, sources: Sequence[str], marks: Sequence[Mark] = (), most: int | None = None) -> list[bytes]:
        """Return the encoded pictures, each of which was decoded once to see that it can be, and its marks placed.

        ``most``: so many are taken, by default as many as a conversation may have.

        Raises ``ApiError``, with the number of the picture, for one that cannot be read, is beyond a bound, or has a
        mark outside of it.
        """
        self.check_count(len(sources), len(marks), most)
        pictures = []
        for number, source in enumerate(sources):
            data = await self._fetch(source, f"picture {number + 1}")
            await self.check(data, f"picture {number + 1}", [mark for mark in marks if mark.region.image == number])
            pictures.append(data)
        return pictures

    async def read_with_drawings(
        self, sources: Sequence[str], marks: Sequence[Mark], most: int
    ) -> list[tuple[bytes, Drawing]]:
        """The same, each picture with what is drawn on it: as an engine draws it, so that both see the same."""
        record = Request((), marks=tuple(marks)).record
        pictures = await self.read(sources, marks, most)
        return [(picture, drawing(record, number)) for number, picture in enumerate(pictures)]

    def check_count(self, pictures: int, regions: int, most: int | None = None) -> None:
        """Raise ``ApiError`` for more pictures (by default than a conversation may have) or regions than are taken."""
        if pictures > (most := most or self.settings.max_images):
            raise ApiError(413, f"{pictures} pictures; at most {most} are taken.", code="too_many_images")
        if regions > self.settings.max_regions:
            raise ApiError(
                413, f"{regions} regions; at most {self.settings.max_regions} are taken.", code="too_many_regions"
            )

    async def check(self, data: bytes, name: str, marks: Sequence[Mark] = ()) -> None:
        """Raise ``ApiError`` for bytes that are no picture within the bounds, or marks outside of it."""
        try:
            await run_sync(self._open, data, name, marks, limiter=self._decoding)
        except ImageError as error:
            raise ApiError(400, str(error), code="invalid_image") from error
        except DataError as error:
            raise ApiError(400, f"{name}: {error}", code="invalid_region") from error

    async def _fetch(self, source: str, name: str) -> bytes:
        if source[:5].lower() == "data:":
            url = "data:" + source[5:]
            try:
                return await run_sync(read_bytes, url, name, self.settings.max_image_bytes, limiter=self._decoding)
            except ImageError as error:
                raise ApiError(400, str(error), code="invalid_image") from error
        if source.startswith("file-"):
            return self.files.get(source).data
        return await self.remote.fetch(source)

    def _open(self, data: bytes, name: str, marks: Sequence[Mark]) -> None:
        settings = self.settings
        picture = load_image(data, max_pixels=settings.max_pixels, max_bytes=settings.max_image_bytes, name=name)
        for mark in marks:
            place(mark.region, picture.size)
