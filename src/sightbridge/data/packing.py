"""Several records in one row: joined end to end, each a segment of its own that no other one looks into."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sightbridge.batch import IGNORE_INDEX
from sightbridge.data.order import RowRoom
from sightbridge.data.processor import Row
from sightbridge.text.encode import Encoded


def pack_rows(rows: Sequence[Row], room: RowRoom, encoder_decoder: bool) -> list[Row]:
    """Join the rows that have room together; nothing is cut, so one that finds none stays alone, behind the others."""
    together: list[Row] = []
    alone: list[list[Row]] = []
    tokens = decoder_tokens = 0
    for row in rows:
        with_row = tokens + len(row.encoded.input_ids)
        decoder_with_row = decoder_tokens + (len(row.encoded.labels) if encoder_decoder else 0)
        if together and (with_row > room.tokens or decoder_with_row > room.decoder_tokens):
            alone.append([row])
        else:
            together.append(row)
            tokens, decoder_tokens = with_row, decoder_with_row
    return [join_rows(part, encoder_decoder) for part in [together, *alone] if part]


def join_rows(rows: Sequence[Row], encoder_decoder: bool) -> Row:
    """Put rows one behind the other and number their positions by row, from 1 on.

    In a decoder-only row the first position of every record has nothing to be predicted from: its label is ignored, as
    it is where the record has a row of its own.
    """
    encoded = [row.encoded for row in rows]
    labels = [row.labels if encoder_decoder else [IGNORE_INDEX, *row.labels[1:]] for row in encoded]
    joined = Encoded(
        input_ids=[token for row in encoded for token in row.input_ids],
        image_slots=[slot for row in encoded for slot in row.image_slots],
        labels=[label for row in labels for label in row],
        images=sum(row.images for row in encoded),
        truncated=sum(row.truncated for row in encoded),
        n_target_tokens=sum(row.n_target_tokens for row in encoded),
    )
    return Row(
        id=", ".join(row.id for row in rows),
        encoded=joined,
        pixels=_cat([row.pixels for row in rows]),
        features=_cat([row.features for row in rows]),
        asked=tuple(ids for row in rows for ids in row.asked),
        segments=_numbered([row.input_ids for row in encoded]),
        decoder_segments=_numbered([row.labels for row in encoded]) if encoder_decoder else None,
    )


def _numbered(parts: Sequence[Sequence[int]]) -> list[int]:
    """The number of its part, from 1 on, for every position."""
    return [number for number, part in enumerate(parts, 1) for _ in part]


def _cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
    given = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(given) if given else None
