"""The order of a run's training records, as its settings ask for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from sightbridge.config.recipe import Recipe, RunRecipe
from sightbridge.data.order import RecordOrder, RowLength, RowRoom
from sightbridge.data.record import Record
from sightbridge.errors import DataError, SettingsError
from sightbridge.models.build import find_config
from sightbridge.models.segments import check_packing
from sightbridge.text.encode import Encoded


def check_order(recipe: RunRecipe) -> None:
    """Check, before any data is read, that rows can be packed if they are to be; raises ``SettingsError``."""
    if not recipe.data.pack:
        return
    if not isinstance(recipe, Recipe):
        raise SettingsError("only the records of a language model can be packed. Set data.pack=false.", key="data.pack")
    if recipe.model.prompt.max_length is None:
        raise SettingsError(
            "packing needs to know how many positions a row has room for. Set model.prompt.max_length.", key="data.pack"
        )
    check_packing(find_config(recipe.model.language_model, "language_model"), recipe.model.prompt.max_length)


def make_order(recipe: RunRecipe, sizes: Sequence[int], lengths: Sequence[RowLength]) -> RecordOrder:
    """Plan the order of the usable training records.

    Args:
        recipe: of the run.
        sizes: usable records of each source.
        lengths: of every usable record's row.

    Raises:
        DataError: a source is to be drawn from by weight, but has no usable record.
    """
    data = recipe.data
    weights = None
    if data.mixture == "weights":
        weights = [source.weight or size for source, size in zip(data.train, sizes, strict=True)]
        empty = [source.path for source, size in zip(data.train, sizes, strict=True) if size == 0]
        if empty:
            raise DataError(f"{empty[0]}: none of its records can be used, so none can be drawn from it")
    return RecordOrder(
        sizes,
        recipe.training.seed,
        weights=weights,
        lengths=lengths,
        group_by_length=data.group_by_length is True,
        llava_batch=recipe.training.batch_size if data.group_by_length == "llava" else None,
        pack_to=row_room(recipe),
    )


def row_room(recipe: RunRecipe) -> RowRoom | None:
    """Positions that records share in a packed row; ``None`` if they are not packed."""
    if not recipe.data.pack:
        return None
    assert isinstance(recipe, Recipe) and recipe.model.prompt.max_length is not None, "check_order sees to it"
    room = recipe.model.prompt.max_length
    return RowRoom(room, recipe.model.prompt.max_answer_length or room)


def row_length(encoded: Encoded | Sequence[int], encoder_decoder: bool) -> RowLength:
    """Measure what a processor's ``encode`` returns: a row, or the ids of the caption of one picture."""
    if not isinstance(encoded, Encoded):
        return RowLength(len(encoded), 0, images=1)
    return RowLength(len(encoded.input_ids), len(encoded.labels) if encoder_decoder else 0, encoded.images)


def count_words(record: Record) -> int:
    """Length of a record for LLaVA's order: words of all its turns, split at white space, markers of pictures among
    them."""
    return sum(len((turn.text or "").split()) for turn in record.turns)


def describe_order(recipe: RunRecipe, order: RecordOrder) -> list[str]:
    """What is worth knowing of the order before a run: shares of a mixture, and how full packed rows are."""
    lines = []
    if order.weights is not None:
        shares = zip(recipe.data.train, order.shares, strict=True)
        lines.append("drawn from " + ", ".join(f"{source.path} {share:.1%}" for source, share in shares))
    if order.pack_to is not None:
        rows = list(islice(order.rows(0), order.rows_per_epoch))
        filled = sum(order.lengths[index].tokens for row in rows for _, index in row)
        room = order.pack_to.tokens
        lines.append(
            f"an epoch packs {order.total:,} records into {len(rows):,} rows of {room:,} positions, "
            f"{filled / (len(rows) * room):.0%} full"
        )
    return lines
