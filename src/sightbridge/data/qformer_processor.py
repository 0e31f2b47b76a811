"""From records to batches for BLIP-2's first stage: one picture and its caption a record, no prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sightbridge.batch import QFormerBatch
from sightbridge.config.model import ImageSettings
from sightbridge.config.qformer_recipe import CaptionTextSettings
from sightbridge.data.feature_store import FeatureStore
from sightbridge.data.processor import PaddingSide, pad
from sightbridge.data.record import Record
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.errors import CheckpointError, DataError, ImageError
from sightbridge.images.fast import TRAIN_TRANSFORMS
from sightbridge.images.load import image_key, load_image
from sightbridge.images.transforms import ImageTransform
from sightbridge.text.encode import NoTargetError

DECODER_START = "[DEC]"
"""Token that generated captions start with, the last of the vocabulary (LAVIS)."""


@dataclass(frozen=True)
class CaptionRow:
    """A record made ready.

    Its picture is there as ``pixels`` (3, H, W), or as ``features`` (S, C) if it was encoded beforehand; rows with
    equal ``view`` have equal ones. ``image_id`` is equal for equal pictures throughout the data.
    """

    id: str
    text_ids: list[int]
    image_id: int
    view: str
    pixels: Tensor | None = None
    features: Tensor | None = None


class QFormerProcessor:
    """Tokenizer and image transform of a first-stage model; has the interface of ``Processor``.

    Args:
        tokenizer: of the captions (see ``load_caption_tokenizer``).
        text: its settings.
        image: how pictures become pixels.
        seed: of the crops drawn while training, together with epoch and record.
        decode: how pictures are opened while training; "fast" gives bytes, which the vision tower normalises.
    """

    encoder_decoder = False

    def __init__(
        self,
        tokenizer: Any,
        text: CaptionTextSettings,
        image: ImageSettings,
        *,
        seed: int = 0,
        decode: Literal["exact", "fast"] = "exact",
    ) -> None:
        self.tokenizer = tokenizer
        self.text_settings = text
        self.image_settings = image
        self.seed = seed
        self.transform = ImageTransform(image)
        self.train_transform = TRAIN_TRANSFORMS[decode](image, seed)

    def __call__(self, records: Sequence[Record], *, training: bool = False, epoch: int = 0) -> QFormerBatch:
        """Turn records into a batch; ``training`` draws augmentations by ``seed``, ``epoch`` and the record alone.

        Raises ``DataError`` or ``ImageError``, naming the record, for one that cannot be used.
        """
        return self.collate([self.prepare(record, training=training, epoch=epoch) for record in records])

    def encode(self, record: Record, *, training: bool = False, epoch: int = 0) -> list[int]:
        """Make the ids of a record's caption, [CLS] and [SEP] included, without opening its picture.

        A caption that is too long loses its end. Raises ``DataError`` for a record without exactly one picture,
        ``NoTargetError`` for one without a caption.
        """
        where = record.where or record.id
        if len(record.images) != 1:
            raise DataError(
                f"{where}: has {len(record.images)} pictures; the first stage learns from captions of one picture each."
            )
        if record.marks or record.plan:
            raise DataError(
                f"{where}: marks a part of its picture, but the first stage learns from captions of whole pictures."
            )
        caption = next((turn.text for turn in reversed(record.turns) if turn.role == "assistant"), None)
        ids = self._caption_ids(caption or "")
        if len(ids) == 2:
            raise NoTargetError(f"{where}: nothing to learn in it: it has no caption, or an empty one.")
        return ids

    def prepare(
        self, record: Record, *, training: bool = False, epoch: int = 0, features: FeatureStore | None = None
    ) -> CaptionRow:
        """Make one record ready; ``features`` replaces opening its picture. Arguments and errors as for a call."""
        text_ids = self.encode(record)
        source = record.images[0]
        key = image_key(source)
        image_id = stable_id(str(record.meta.get("image_id", key)))
        try:
            if features is not None:
                view = features.views.seen(record, training=training, epoch=epoch)
                return CaptionRow(record.id, text_ids, image_id, key + view.name, features=features[view])
            if not training:
                return CaptionRow(record.id, text_ids, image_id, key, self.transform(load_image(source)))
            pixels = self.train_transform.open(source, epoch=epoch, record_id=record.id)
            view = key if self.image_settings.augment == "none" else f"{key} {epoch} {record.id}"
            return CaptionRow(record.id, text_ids, image_id, view, pixels)
        except ImageError as error:
            raise ImageError(f"{record.where or record.id}: {error}") from error

    def collate(self, rows: Sequence[CaptionRow], padding_side: PaddingSide = "right") -> QFormerBatch:
        """Pad captions to a common length, always on the right; a picture of several rows is there once."""
        assert padding_side == "right", "positions of captions are counted from the left"
        views: dict[str, CaptionRow] = {}
        for row in rows:
            views.setdefault(row.view, row)
        places = {view: place for place, view in enumerate(views)}
        pixels = [row.pixels for row in views.values() if row.pixels is not None]
        features = [row.features for row in views.values() if row.features is not None]
        assert not (pixels and features), "the rows of a batch bring pixels or features, not both"
        return QFormerBatch(
            text_ids=pad([row.text_ids for row in rows], self.tokenizer.pad_token_id, "right"),
            text_mask=pad([[1] * len(row.text_ids) for row in rows], 0, "right"),
            image_index=torch.tensor([places[row.view] for row in rows]),
            image_ids=torch.tensor([row.image_id for row in rows]),
            pixel_values=torch.stack(pixels) if pixels else None,
            image_features=torch.stack(features) if features else None,
            ids=tuple(row.id for row in rows),
        )

    def texts(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L) of captions, to score them with pictures."""
        rows = [self._caption_ids(caption) for caption in captions]
        return pad(rows, self.tokenizer.pad_token_id, "right"), pad([[1] * len(row) for row in rows], 0, "right")

    def decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Turn generated ids (B, L) into captions: up to the first [SEP], without special tokens."""
        captions = []
        for row in ids.tolist() if isinstance(ids, Tensor) else ids:
            end = next((i for i, token in enumerate(row) if token == self.tokenizer.sep_token_id), len(row))
            captions.append(self.tokenizer.decode(row[:end], skip_special_tokens=True).strip())
        return captions

    def _caption_ids(self, caption: str) -> list[int]:
        """[CLS], words, [SEP]; BERT's tokenizer says the same with ``truncation=True``."""
        words = self.tokenizer(caption, add_special_tokens=False)["input_ids"][: self.text_settings.max_length - 2]
        return [self.tokenizer.cls_token_id, *words, self.tokenizer.sep_token_id]


def load_caption_tokenizer(source: str) -> Any:
    """Open a tokenizer and make sure that it has [CLS], [SEP] and, as the last token of its vocabulary, [DEC].

    A tokenizer without the first two, of a language model say, uses its <s> and </s> for them.

    Raises ``CheckpointError`` if it has neither, or a [DEC] elsewhere.
    """
    tokenizer = load_tokenizer(source, setting="text.tokenizer")
    if tokenizer.cls_token is None or tokenizer.sep_token is None:
        if tokenizer.bos_token is None or tokenizer.eos_token is None:
            raise CheckpointError(
                f"the tokenizer in '{source}' has no [CLS] and [SEP], and no <s> and </s> to use instead; choose "
                "another one as text.tokenizer, such as bert-base-uncased."
            )
        tokenizer.cls_token, tokenizer.sep_token = tokenizer.bos_token, tokenizer.eos_token
    if DECODER_START not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"bos_token": DECODER_START})
    if tokenizer.convert_tokens_to_ids(DECODER_START) != len(tokenizer) - 1:
        raise CheckpointError(f"the tokenizer in '{source}' has {DECODER_START}, but not as the last of its tokens.")
    return tokenizer


def stable_id(name: str) -> int:
    """A number for a picture's name, the same in every process: 63 bits, so that it fits into an int64."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1
