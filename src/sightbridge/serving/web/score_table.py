"""Scores as a table on the page, and as files to save."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import torch

from sightbridge.pages import render
from sightbridge.scoring.output import format_score, format_scores
from sightbridge.scoring.page import cell_colours
from sightbridge.scoring.scorer import Scores
from sightbridge.serving.api.served import ScoreTable
from sightbridge.serving.web.pictures_box import ShownPicture
from sightbridge.serving.web.thumbnails import thumbnail

SAVED = {".csv": "text/csv", ".jsonl": "application/jsonl", ".json": "application/json"}
"""Endings and types of the files that a table can be saved as; the last one has the record too."""


def write_table(
    table: ScoreTable, pictures: Sequence[ShownPicture], texts: Sequence[str], seconds: float, seen: int
) -> str:
    """The table as HTML: a row for each picture, a column for each text, the best of both marked.

    ``seen``: as for ``thumbnail``.
    """
    scores = Scores(
        values=torch.tensor(table.scores),
        images=[picture.name for picture in pictures],
        texts=list(texts),
        tokens=table.tokens,
        skipped={},
        record=table.record,
    )
    pairs = len(pictures) * len(texts)
    return render(
        "sightbridge.serving.web",
        "scores.html.jinja",
        texts=texts,
        rows=[
            {"name": picture.name, "picture": thumbnail(picture.data, picture.regions, seen), "cells": cells}
            for picture, cells in zip(pictures, _cells(table), strict=True)
        ],
        timing=f"{pairs:,} {'pair' if pairs == 1 else 'pairs'} in {seconds:.2f} s",
        files=[
            {"name": f"scores{suffix}", "url": _as_url(format_scores(scores, suffix), kind)}
            for suffix, kind in SAVED.items()
        ],
        record=table.record,
    )


def _cells(table: ScoreTable) -> list[list[dict[str, Any]]]:
    values = table.scores
    low, high = min(map(min, values)), max(map(max, values))
    columns = [max(column) for column in zip(*values, strict=True)]
    return [
        [
            {
                "shown": format_score(value, max(abs(low), abs(high))),
                "trace": "  ".join(f"{token.text} {token.logprob:.2f}" for token in tokens),
                "is_best_text": len(row) > 1 and value == max(row),
                "is_best_picture": len(values) > 1 and value == best,
            }
            | cell_colours(value, low, high)
            for value, tokens, best in zip(row, traces, columns, strict=True)
        ]
        for row, traces in zip(values, table.tokens, strict=True)
    ]


def _as_url(text: str, kind: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode('utf-8', 'replace')).decode()}"
