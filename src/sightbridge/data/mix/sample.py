"""The sample: what every raw format is read as."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sightbridge.data.mix.settings import PartSettings
from sightbridge.errors import DataError, SettingsError
from sightbridge.images.load import ENDINGS


@dataclass(frozen=True, slots=True)
class Sample:
    """Pictures, by their names inside the mixture's folder, and texts.

    ``language`` is what the file says about it. ``dropped`` is the reason why it cannot be used, if there is one.
    """

    images: tuple[str, ...]
    fields: dict[str, Any]
    where: str
    language: str | None = None
    dropped: str | None = None


def name_picture(part: PartSettings, name: str, where: str) -> str:
    """The picture's name inside the mixture's folder: renamed as ``image_name`` says, inside ``images``."""
    if part.image_name:
        stem = name[: -len(PurePosixPath(name).suffix)] if name.lower().endswith(ENDINGS) else name
        try:
            name = part.image_name.format(stem)
        except (IndexError, KeyError, ValueError) as error:
            raise SettingsError(
                f"image_name: '{part.image_name}' cannot be filled in with '{stem}': {error}", "image_name"
            ) from error
    path = posixpath.join(part.images, name)
    if path.startswith("/") or ".." in path.split("/"):
        raise DataError(f"{where}: the picture '{path}' is outside of the mixture's folder of pictures.")
    return posixpath.normpath(path)
