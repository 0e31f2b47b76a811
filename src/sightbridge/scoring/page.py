"""Scores as a page: pictures beside their texts, every cell coloured by its score. It loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightbridge.config.load import write_atomically
from sightbridge.images.load import ImageSource
from sightbridge.pages import render, thumbnail
from sightbridge.scoring.output import format_score, short_names
from sightbridge.scoring.scorer import Scores
from sightbridge.scoring.settings import KINDS

MAX_ROWS = 1000
"""Rows of a page; a browser takes its time with more."""
THUMBNAIL = 192
"""Longest side of a picture on the page, in pixels; it is shown at half of that, sharp on fine screens too."""
LIGHT, DARK = (238, 245, 255), (11, 61, 145)
"""Colours of the lowest and the highest score: one hue, from light to dark."""


def write_page(scores: Scores, sources: Sequence[ImageSource], path: Path) -> None:
    """Write the page of a table (M, N), or of pairs (P,), which get a column of texts and one of scores."""
    is_table = scores.values.dim() == 2
    rows = [_row(scores, sources, place, is_table) for place in range(min(len(scores.values), MAX_ROWS))]
    for row, short in zip(rows, short_names(scores.images), strict=False):
        row["short"] = short
    finite = scores.values[scores.values.isfinite()]
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 0.0)
    largest = max(abs(low), abs(high))
    for row in rows:
        for cell in row["cells"]:
            cell |= cell_colours(cell["value"], low, high) | {
                "shown": format_score(cell["value"], max(abs(low), abs(high)))
            }
    html = render(
        "sightbridge.scoring",
        "grid.html.jinja",
        rows=rows,
        texts=scores.texts if is_table else None,
        pictures=len(set(scores.images)),
        count=len(set(scores.texts)),
        left_out=len(scores.values) - len(rows),
        low=format_score(low, largest),
        high=format_score(high, largest),
        light=_css(LIGHT),
        dark=_css(DARK),
        what=KINDS[scores.record["kind"]],
        record=scores.record,
        skipped=scores.skipped,
    )
    write_atomically(path, html.encode("utf-8", "backslashreplace").decode())


def _row(scores: Scores, sources: Sequence[ImageSource], place: int, is_table: bool) -> dict[str, Any]:
    values = scores.values[place].tolist() if is_table else [scores.values[place].item()]
    scored = [value for value in values if value == value]
    best = max(scored) if is_table and len(scored) > 1 else None
    tokens = scores.tokens[place] if is_table else [scores.tokens[place]]
    cells = [
        {"value": value, "best": value == best, "trace": "  ".join(f"{t.text} {t.logprob:.2f}" for t in trace)}
        for value, trace in zip(values, tokens, strict=True)
    ]
    name = scores.images[place]
    return {
        "name": name,
        "picture": thumbnail(sources[place], THUMBNAIL),
        "error": scores.skipped.get(name),
        "text": None if is_table else scores.texts[place],
        "cells": cells,
    }


def cell_colours(value: float, low: float, high: float) -> dict[str, str]:
    """Colour of a cell between those of the lowest and the highest score, and of the number on it."""
    if value != value:
        return {"colour": "transparent", "ink": "inherit"}
    share = (value - low) / (high - low) if high > low else 0.0
    mixed = tuple(round(a + (b - a) * share) for a, b in zip(LIGHT, DARK, strict=True))
    return {"colour": _css(mixed), "ink": "#ffffff" if share > 0.65 else "#1c2430"}


def _css(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)
