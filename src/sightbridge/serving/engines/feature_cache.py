"""Features of pictures that were asked about lately, by what is in the picture."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from threading import Lock

import numpy as np
from PIL import Image
from torch import Tensor

from sightbridge.data.feature_store import View
from sightbridge.images.load import describe_source, image_key, load_image, read_bytes


class FeatureCache:
    """Features (S, C) of pictures, at most ``limit`` bytes of them (``nbytes``); those unused for longest go first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> Tensor | None:
        """Look features up."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: str, features: Tensor) -> None:
        """Keep features, unless they alone are larger than the limit."""
        with self._lock:
            if key in self._kept or features.nbytes > self.limit:
                return
            self._kept[key] = features
            self.nbytes += features.nbytes
            while self.nbytes > self.limit:
                self.nbytes -= self._kept.popitem(last=False)[1].nbytes


def content_key(view: View) -> str:
    """Equal for equal pictures with equal marks: a hash of the file's bytes, wherever they came from, or of pixels.

    An engine has one model and one transform, so these are no part of it. Raises ``ImageError`` for a picture that
    cannot be read.
    """
    source = view.source
    if isinstance(source, np.ndarray | Image.Image):
        key = image_key(load_image(source))
    else:
        data = read_bytes(source, describe_source(source))
        key = f"file:{hashlib.sha256(data).hexdigest()}"
    return f"{key} {view.name}"
