"""Features of pictures, computed once instead of in every step: which view of a picture they belong to, in which type
they are kept, and the store that keeps them in memory. ``feature_cache`` keeps them on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from sightbridge.config.data import CacheDtype
from sightbridge.config.model import ImageSettings
from sightbridge.data.marks import NO_MARKS, Drawing, drawing, realise
from sightbridge.data.record import Record
from sightbridge.errors import ImageError, SettingsError
from sightbridge.images.fast import TRAIN_TRANSFORMS
from sightbridge.images.load import ImageSource, image_key, load_image
from sightbridge.images.transforms import ImageTransform, normalise

Encode = Callable[[Tensor], Tensor]
"""Pixels (n, 3, H, W) to features (n, S, C): what is frozen of a model, on whatever device it lives."""

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
"""Largest number of the type e4m3: 448 (Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433)."""


@dataclass(frozen=True)
class View:
    """A picture as the model sees it: through the fixed transform, or as view ``number`` drawn for a record.

    ``drawn`` names what was drawn and from which seed; equal names mean equal pixels. It is empty for the fixed
    transform. ``marks`` are drawn on the picture before it is transformed.
    """

    source: ImageSource
    number: int = 0
    record_id: str = ""
    position: int = 0
    drawn: str = ""
    marks: Drawing = NO_MARKS

    @property
    def name(self) -> str:
        """Equal for equal pixels of the same picture: all that was drawn; empty if nothing was."""
        return " ".join(filter(None, (self.drawn, self.marks.name)))


class Views:
    """The views that there are of every picture, and how each is made.

    Without augmentation there is one. With it, or with marks on the picture, training draws anew for every record and
    epoch, and of these draws the first ``stored`` are views: epoch e sees view e % stored, which is exactly what it
    would have drawn without a store as long as e < stored.

    Args:
        image: how pictures become pixels.
        seed: of the draws, as for ``TrainTransform``.
        stored: views per picture; ``None`` = the fixed transform alone.
        decode: how pictures are opened for training; validation sees them through the exact transform.

    Raises ``SettingsError`` if training draws a new view in every epoch and no number of views is given.
    """

    def __init__(
        self,
        image: ImageSettings,
        seed: int = 0,
        stored: int | None = None,
        decode: Literal["exact", "fast"] = "exact",
    ) -> None:
        check_views(image, stored)
        self.image = image
        self.seed = seed
        self.stored = stored if image.augment != "none" else None
        self._stored_marked = stored
        self._fixed = ImageTransform(image)
        self._decode = decode
        self._training = TRAIN_TRANSFORMS[decode](image, seed)

    def epoch_seen(self, epoch: int) -> int:
        """The epoch whose marks, and words about them, are seen in ``epoch``."""
        return epoch % self._stored_marked if self._stored_marked else epoch

    def seen(self, record: Record, position: int = 0, *, training: bool = False, epoch: int = 0) -> View:
        """The view of picture ``position`` of ``record`` that is seen in ``epoch``, which it was realised for."""
        source = record.images[position]
        if not training:
            return View(source, marks=drawing(record, position))
        marks = drawing(record, position, (self.seed, self.epoch_seen(epoch)))
        if self.stored is None:
            return View(source, drawn="fast" if self._decode == "fast" else "", marks=marks)
        number = epoch % self.stored
        crop = f"{self.image.augment} {self.image.crop_scale[0]:g} {self.image.crop_scale[1]:g}"
        drawn = f"{self._decode} {crop}/{self.seed}/{number}/{position}/{record.id}"
        return View(source, number, record.id, position, drawn, marks)

    def of(self, records: Iterable[Record], training: bool) -> Iterator[View]:
        """Every view of the pictures of ``records``; a picture in several of them comes several times.

        Raises ``SettingsError`` for marks that training draws anew in every epoch, if no number of views is given.
        """
        for record in records:
            for epoch in self._epochs(record) if training else (0,):
                drawn = realise(record, self.seed, epoch) if training else record
                for position in range(len(drawn.images)):
                    yield self.seen(drawn, position, training=training, epoch=epoch)

    def _epochs(self, record: Record) -> range:
        """The epochs in which training draws a record anew."""
        check_marks(record, self._stored_marked)
        is_marked = bool(record.marks or record.plan)
        return range((self._stored_marked if is_marked else self.stored) or 1)

    def open(self, view: View) -> Tensor:
        """Normalised pixels (3, size, size) of a view; raises ``ImageError`` for a picture that cannot be opened."""
        source = view.marks.on(view.source, self.image.anchor)
        if not view.drawn:
            return self._fixed(load_image(source))
        pixels = self._training.open(source, epoch=view.number, record_id=view.record_id, position=view.position)
        if pixels.dtype == torch.uint8:  # as the tower would normalise them
            return normalise(pixels[None], self.image.mean, self.image.std)[0]
        return pixels


def check_marks(record: Record, stored: int | None) -> None:
    """Raise ``SettingsError`` if a training record's marks are drawn anew in every epoch, so nothing can be stored."""
    if (record.marks or record.plan) and stored is None:
        raise SettingsError(
            f"{record.where or record.id}: marks a part of its picture anew in every epoch, but stored "
            "features need the same picture again. Store several drawn views of every such picture "
            "(data.cache_views=4; as many as epochs change nothing, fewer repeat), or set data.cache=null.",
            key="data.cache",
        )


def check_views(image: ImageSettings, stored: int | None) -> None:
    """Raise ``SettingsError`` if views cannot be stored as the settings say."""
    if image.augment != "none" and stored is None:
        raise SettingsError(
            f"stored features need the same view of a picture in every epoch, but image.augment is '{image.augment}'. "
            "Set model.image.augment=none, or store several drawn views of every picture (data.cache_views=4; as many "
            "as epochs change nothing, fewer repeat), or data.cache=null.",
            key="data.cache",
        )


class FeatureStore(ABC):
    """Features of pictures. ``store[view]`` is (S, C); it is called in the processes that prepare batches.

    A picture that cannot be opened raises the ``ImageError`` that opening it raised, so that its records become bad
    samples like any others.

    Args:
        views: the views it was made of.
        prefix: what of the model the features have behind them, see ``VisionLanguageModel.frozen_prefix``.
    """

    def __init__(self, views: Views, prefix: str = "tower") -> None:
        self.views = views
        self.prefix = prefix

    @abstractmethod
    def __getitem__(self, view: View) -> Tensor: ...

    @abstractmethod
    def __len__(self) -> int: ...


class MemoryFeatures(FeatureStore):
    """Features of every picture of ``records``, in this process's memory."""

    def __init__(
        self,
        wanted: Iterable[View],
        views: Views,
        encode: Encode,
        *,
        batch_size: int = 32,
        dtype: CacheDtype | None = None,
        prefix: str = "tower",
    ) -> None:
        """Open and encode all ``wanted`` views, ``batch_size`` at a time. ``dtype``: ``None`` keeps what comes."""
        super().__init__(views, prefix)
        self._features: dict[tuple[str, str], tuple[Tensor, Tensor | None]] = {}
        self._errors: dict[tuple[str, str], str] = {}
        pictures = self._open_distinct(wanted)
        while batch := list(islice(pictures, batch_size)):
            with torch.no_grad():
                features = encode(torch.stack([pixels for _, pixels in batch])).cpu()
            for (key, _), one in zip(batch, features, strict=True):
                self._features[key] = to_dtype(one, dtype)

    def _open_distinct(self, wanted: Iterable[View]) -> Iterator[tuple[tuple[str, str], Tensor]]:
        seen: set[tuple[str, str]] = set()
        for view in wanted:
            key = _memory_key(view)
            if key in seen:
                continue
            seen.add(key)
            try:
                yield key, self.views.open(view)
            except ImageError as error:
                self._errors[key] = str(error)

    def __getitem__(self, view: View) -> Tensor:
        key = _memory_key(view)
        if key in self._errors:
            raise ImageError(self._errors[key])
        return from_dtype(*self._features[key])

    def __len__(self) -> int:
        return len(self._features)

    @property
    def nbytes(self) -> int:
        """Memory taken, in bytes."""
        return sum(entry_bytes(*entry) for entry in self._features.values())


def _memory_key(view: View) -> tuple[str, str]:
    return image_key(view.source), view.name


def keep_in_memory(
    records: Iterable[Record], image: ImageSettings, encode: Encode, batch_size: int = 32
) -> MemoryFeatures:
    """Encode every picture of ``records`` once, through the fixed transform, and keep the features as they come."""
    views = Views(image.model_copy(update={"augment": "none"}))
    return MemoryFeatures(views.of(records, training=False), views, encode, batch_size=batch_size)


def entry_bytes(values: Tensor, scales: Tensor | None) -> int:
    """Bytes that one picture's features take."""
    return values.nbytes + (0 if scales is None else scales.nbytes)


def to_dtype(features: Tensor, dtype: CacheDtype | None) -> tuple[Tensor, Tensor | None]:
    """Features (..., S, C) in the type they are stored in, and for fp8 a scale (..., S, 1) per token.

    Raises ``SettingsError`` if one does not fit into the type; float16 ends at 65,504, which some towers pass.
    """
    scales = None
    if dtype == "fp8":
        scales = features.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
        values = (features.float() / scales).to(torch.float8_e4m3fn)
    else:
        values = features if dtype is None else features.to(getattr(torch, dtype))
    if not values.float().isfinite().all():
        why = "the model makes infinite or undefined features" if not features.isfinite().all() else "they overflow"
        raise SettingsError(f"features cannot be stored as {dtype}: {why}", key="data.cache_dtype")
    return values, scales


def from_dtype(values: Tensor, scales: Tensor | None) -> Tensor:
    """What ``to_dtype`` stored; fp8 comes back as bfloat16, whose rounding is ten times finer."""
    return values if scales is None else (values.float() * scales).to(torch.bfloat16)
