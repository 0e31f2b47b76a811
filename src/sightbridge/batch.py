"""The one batch type: everything before a model produces it, every model takes it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of positions that are not a target (the value PyTorch's cross entropy ignores)."""


@dataclass(frozen=True)
class Batch:
    """B rows of text and the N pictures they hold, rows in order, pictures of a row in order.

    A row is one record, or several joined end to end if the batch is packed.

    Shapes (L = padded length, T = image tokens per picture, Ld = padded decoder length):

    - ``input_ids`` (B, L) int64. Image slots hold the padding id; they are never looked up.
    - ``attention_mask`` (B, L) int64, 1 on real positions (text and image slots), 0 on padding.
    - ``image_slots`` (B, L) bool, true where an image token goes; each picture takes T slots in a row.
    - ``images_per_row`` (B,) int64, pictures of each row; sums to N.
    - ``pixel_values`` (N, 3, H, W) float, normalised, or uint8, which the vision tower normalises, **or**
      ``image_features`` (N, S, C), the output of a frozen vision tower computed beforehand (S positions, C channels).
      Both ``None`` when the batch has no picture.
    - ``features_from``: what of the model the features have behind them: the tower, or with ``connector.read`` also all
      of the connector but its last linear layer, and then they are (N, T, hidden size of the Q-Former).
    - ``connector_ids``, ``connector_mask`` (N, Lq) int64: what is asked about each picture, in the ids of the tokenizer
      of a connector that reads it too; the mask is 0 on padding. ``None`` for every other connector.
    - ``labels``: decoder-only (B, L), aligned with ``input_ids`` (not shifted); encoder-decoder (B, Ld), the decoder's
      targets. ``IGNORE_INDEX`` where there is nothing to predict. ``None`` when only generating.
    - ``segments`` (B, L) int64: of a packed batch, the number of the record (1, 2, ... in its row) that each position
      belongs to, 0 on padding; ``decoder_segments`` (B, Ld) says it of the labels of an encoder-decoder.
    - ``n_target_tokens``: how many labels are targets *and have a prediction* (a decoder-only model predicts
      position i from i-1, so a target at a record's first position has none).
    - ``ids``: B record identifiers, for messages; those of a packed row with commas between them.
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_slots: Tensor
    images_per_row: Tensor
    pixel_values: Tensor | None = None
    image_features: Tensor | None = None
    connector_ids: Tensor | None = None
    connector_mask: Tensor | None = None
    labels: Tensor | None = None
    segments: Tensor | None = None
    decoder_segments: Tensor | None = None
    n_target_tokens: int = 0
    features_from: Literal["tower", "connector.read"] = "tower"
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of records."""
        if self.segments is None:
            return self.input_ids.shape[0]
        return int(self.segments.amax(dim=1).sum())

    @property
    def loss_counts(self) -> dict[str, int]:
        """What each loss of the model sums over, known before the forward pass."""
        return {"lm": self.n_target_tokens}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """Move every tensor to ``device``; floating tensors also to ``dtype`` if one is given."""
        return replace(self, **_moved(self, device, dtype))


@dataclass(frozen=True)
class QFormerBatch:
    """B captions and the N distinct pictures they belong to, for the first stage of BLIP-2.

    - ``text_ids`` (B, L) int64: [CLS], the caption, [SEP], padding. The model itself puts [DEC] in place of [CLS] where
      it generates.
    - ``text_mask`` (B, L) int64, 1 on real tokens, 0 on padding.
    - ``image_index`` (B,) int64: which of the N pictures a row has; several captions may share one.
    - ``image_ids`` (B,) int64, equal for equal pictures throughout the data: the other captions of a picture are then
      positives too, and never its hard negatives. ``None``: every row has a picture of its own.
    - ``pixel_values`` (N, 3, H, W) float, normalised, **or** ``image_features`` (N, S, C), as in ``Batch``.
    - ``ids``: B record identifiers, for messages.
    """

    text_ids: Tensor
    text_mask: Tensor
    image_index: Tensor
    image_ids: Tensor | None = None
    pixel_values: Tensor | None = None
    image_features: Tensor | None = None
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.text_ids.shape[0]

    @property
    def loss_counts(self) -> dict[str, int]:
        """What each loss sums over: rows; rows with their two negatives; tokens predicted from an earlier one."""
        return {"itc": len(self), "itm": 3 * len(self), "itg": int(self.text_mask[:, 1:].sum())}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> QFormerBatch:
        """Move every tensor to ``device``; floating tensors also to ``dtype`` if one is given."""
        return replace(self, **_moved(self, device, dtype))


def _moved(batch: Batch | QFormerBatch, device: torch.device | str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Every tensor of a batch on ``device``, by its field's name."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {
        name: value.to(device, dtype if value.is_floating_point() else None)
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
