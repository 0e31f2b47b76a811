"""The frozen vision tower's output, computed once per distinct picture and kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from sightbridge.config.model import ImageSettings
from sightbridge.data.record import Record
from sightbridge.errors import ImageError, SettingsError
from sightbridge.images.load import ImageSource, image_key, load_image
from sightbridge.images.transforms import ImageTransform

Encode = Callable[[Tensor], Tensor]
"""Pixels (n, 3, H, W) to features (n, S, C): the tower, on whatever device it lives."""


class FeatureStore:
    """Features of every picture of ``records``, on the CPU; ``store[source]`` is (S, C).

    A picture that cannot be opened does not stop the building: looking it up raises the ``ImageError`` that opening
    it raised, so that its records become bad samples like any others.
    """

    def __init__(self, records: Iterable[Record], image: ImageSettings, encode: Encode, batch_size: int = 32) -> None:
        """Open and encode all pictures, ``batch_size`` at a time.

        Raises ``SettingsError`` if training draws a new view of every picture each epoch: there is nothing to keep.
        """
        check_same_view(image)
        self._features: dict[str, Tensor] = {}
        self._errors: dict[str, str] = {}
        pictures = self._open_distinct(records, ImageTransform(image))
        while batch := list(islice(pictures, batch_size)):
            keys, pixels = zip(*batch, strict=True)
            with torch.no_grad():
                features = encode(torch.stack(pixels)).cpu()
            self._features.update(zip(keys, features, strict=True))

    def _open_distinct(self, records: Iterable[Record], transform: ImageTransform) -> Iterator[tuple[str, Tensor]]:
        seen: set[str] = set()
        for source in (source for record in records for source in record.images):
            key = image_key(source)
            if key in seen:
                continue
            seen.add(key)
            try:
                yield key, transform(load_image(source))
            except ImageError as error:
                self._errors[key] = str(error)

    def __getitem__(self, source: ImageSource) -> Tensor:
        key = image_key(source)
        if key in self._errors:
            raise ImageError(self._errors[key])
        return self._features[key]

    def __len__(self) -> int:
        return len(self._features)

    @property
    def nbytes(self) -> int:
        """Memory taken, in bytes."""
        return sum(features.nbytes for features in self._features.values())


def check_same_view(image: ImageSettings) -> None:
    """Raise ``SettingsError`` if training draws a new view of every picture each epoch."""
    if image.augment != "none":
        raise SettingsError(
            f"keep_features needs the same view of a picture in every epoch; image.augment is '{image.augment}'. "
            "Set image.augment=none or data.keep_features=false.",
            key="data.keep_features",
        )
