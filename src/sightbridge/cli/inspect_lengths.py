"""``sightbridge inspect data --lengths``: how long the rows of an annotation file are, to choose ``max_length`` by."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.progress import track
from rich.table import Table
from rich.text import Text

from sightbridge.cli.console import console, new_table, wide_console
from sightbridge.errors import DataError

if TYPE_CHECKING:
    from sightbridge.data.processor import Processor
    from sightbridge.data.record import Record
    from sightbridge.text.encode import Encoded

BINS = 12
"""Rows of the histogram."""
BAR = 50
"""Characters of its longest bar."""
QUANTILES = (0.5, 0.9, 0.95, 0.99, 1.0)
LIMITS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Values of ``model.prompt.max_length`` to try, as long as any row is longer; the model's own is tried, too."""


class Row(NamedTuple):
    """Tokens of a record without a greatest length. Of an encoder-decoder the target is not in the row.

    ``pictures_end``: position behind the last picture. ``first_target``: of the first token to be learned that has
    another before it. ``kept``: tokens at the end that a cut leaves there (an encoder's EOS).
    """

    length: int
    in_pictures: int
    pictures_end: int
    targets: int
    first_target: int
    kept: int


class Cut(NamedTuple):
    """What a greatest length does: rows that are cut, cuts through a picture, rows without a target left."""

    rows: int
    pictures: int
    no_target: int


def show_lengths(records: Sequence[Record], processor: Processor) -> None:
    """Print a histogram, quantiles, and what each greatest length would cut off.

    Raises ``DataError`` if no record can be used.
    """
    rows, unusable = measure(records, processor)
    if not rows:
        raise DataError(f"none of the {len(records)} records can be used; the first: {unusable[0]}")
    out = wide_console()
    what = "tokens of the encoder's row" if processor.encoder_decoder else "tokens of prompt and target"
    out.print(Text(f"{len(rows):,} rows: {what}, {processor.tokens_per_image} for each picture", style="bold"))
    for line in histogram([row.length for row in rows]):
        out.print(line)
    out.print(_quantile_table(rows, processor.encoder_decoder))
    out.print(_limit_table(rows, processor))
    if unusable:
        out.print(Text(f"{len(unusable):,} records cannot be used at any length; the first: {unusable[0]}"))


def find_processor(model: str) -> Processor:
    """The processor of a model folder, or else of a recipe; neither has a weight read."""
    if Path(model).expanduser().is_dir():
        from sightbridge.checkpoints.folder import load_processor

        return load_processor(model)
    from sightbridge.config.load import load_recipe
    from sightbridge.training.processors import make_processor

    return make_processor(load_recipe(model))


def measure(records: Sequence[Record], processor: Processor) -> tuple[list[Row], list[str]]:
    """Encode every record without a greatest length; also say why records cannot be. Pictures are not opened."""
    whole = copy(processor)
    no_limit = {"max_length": None, "max_answer_length": None}
    whole.prompt_settings = processor.prompt_settings.model_copy(update=no_limit)
    rows, unusable = [], []
    terminal = console(stderr=True)
    for record in track(records, "counting", console=terminal, transient=True, disable=not terminal.is_terminal):
        try:
            rows.append(_row(whole.encode(record), whole))
        except DataError as error:
            unusable.append(str(error))
    return rows, unusable


def _row(encoded: Encoded, processor: Processor) -> Row:
    from sightbridge.text.encode import IGNORE_INDEX

    slots = [index for index, is_slot in enumerate(encoded.image_slots) if is_slot]
    first_target, kept = 0, 0
    if processor.encoder_decoder:
        kept = int(encoded.input_ids[-1] == processor.tokenizer.eos_token_id)
    else:
        first_target = next(i for i, label in enumerate(encoded.labels) if i and label != IGNORE_INDEX)
    end = slots[-1] + 1 if slots else 0
    return Row(len(encoded.input_ids), len(slots), end, encoded.n_target_tokens, first_target, kept)


def cut_at(rows: Sequence[Row], limit: int, answer_limit: int | None) -> Cut:
    """What ``max_length`` = ``limit`` does to rows; ``answer_limit``: longest target of an encoder-decoder, if any."""
    longest = answer_limit or limit
    cut = [row for row in rows if row.length > limit or (not row.first_target and row.targets > longest)]
    through = sum(row.length > limit and row.pictures_end > limit - row.kept for row in cut)
    return Cut(len(cut), through, sum(row.first_target >= limit for row in cut))


def histogram(values: Sequence[int]) -> list[Text]:
    """Bars of how many values lie in each of equally wide ranges."""
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // BINS))
    counts = [0] * (-(-(high - low + 1) // width))
    for value in values:
        counts[(value - low) // width] += 1
    digits = len(f"{high:,}")
    lines = []
    for index, count in enumerate(counts):
        first = low + index * width
        last = min(first + width - 1, high)
        bar = "█" * max(round(BAR * count / max(counts)), count > 0)
        lines.append(Text(f"{first:>{digits},} - {last:>{digits},}  ").append(bar, style="cyan").append(f" {count:,}"))
    return lines


def quantile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * 1_000_000) * len(ordered) // 1_000_000) - 1)]


def _quantile_table(rows: Sequence[Row], encoder_decoder: bool) -> Table:
    """Means and quantiles, prompt and target apart."""
    columns = {"row": [row.length for row in rows], "pictures in it": [row.in_pictures for row in rows]}
    if not encoder_decoder:
        columns["prompt"] = [row.length - row.targets for row in rows]
    columns["target"] = [row.targets for row in rows]
    table = new_table("tokens", "mean", *(f"{share:.0%}" if share < 1 else "longest" for share in QUANTILES))
    for name, values in columns.items():
        mean = f"{sum(values) / len(values):,.1f}"
        table.add_row(name, mean, *(f"{quantile(values, share):,}" for share in QUANTILES))
    return table


def _limit_table(rows: Sequence[Row], processor: Processor) -> Table:
    """What each greatest length does, up to the first that does nothing."""
    settings = processor.prompt_settings
    drops = processor.template.resolve(settings.switches)["drop_cut_images"]
    table = new_table(
        "max_length", "rows cut", "", "lose a picture" if drops else "refused (picture)", "no target left"
    )
    limits: set[int] = {*LIMITS, *([settings.max_length] if settings.max_length else [])}
    for limit in sorted(limits):
        cut = cut_at(rows, limit, settings.max_answer_length)
        own = "  (the model's)" if limit == settings.max_length else ""
        share = f"{cut.rows / len(rows):.1%}"
        table.add_row(f"{limit:,}{own}", f"{cut.rows:,}", share, f"{cut.pictures:,}", f"{cut.no_target:,}")
        if not cut.rows and limit >= (settings.max_length or 0):
            break
    return table
