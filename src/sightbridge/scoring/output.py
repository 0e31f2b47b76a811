"""Scores as files: CSV, JSON lines or JSON. What the scores depend on always goes with them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightbridge.config.load import write_atomically
from sightbridge.errors import SettingsError, nearest
from sightbridge.scoring.scorer import Scores

SUFFIXES = (".csv", ".jsonl", ".json")


def check_suffix(path: Path) -> None:
    """Raise ``SettingsError`` for a file whose ending names no format that is written."""
    if path.suffix.lower() not in SUFFIXES:
        raise SettingsError(
            f"{path}: scores are written as {', '.join(SUFFIXES)}.{nearest(path.suffix.lower(), list(SUFFIXES))}"
        )


def score_rows(scores: Scores, trace: bool = False) -> list[dict[str, Any]]:
    """A row for every pair, picture by picture: image, text, score, and the tokens if ``trace``.

    A pair whose picture was skipped has ``error`` in place of a score.
    """
    if scores.values.dim() == 1:
        cells = [(place, place, (place,)) for place in range(len(scores.values))]
    else:
        assert scores.values.dim() == 2, "samples are tables of their own"
        cells = [(row, column, (row, column)) for row, column in _places(scores.values.shape)]
    rows = []
    for image, text, where in cells:
        row: dict[str, Any] = {"image": scores.images[image], "text": scores.texts[text]}
        if scores.images[image] in scores.skipped:
            row["error"] = scores.skipped[scores.images[image]]
        else:
            row["score"] = scores.values[where].item()
            if trace:
                found = scores.tokens[image] if len(where) == 1 else scores.tokens[image][text]
                row["tokens"] = [[token.text, token.logprob] for token in found]
        rows.append(row)
    return rows


def _places(shape: Any) -> list[tuple[int, int]]:
    return [(row, column) for row in range(shape[0]) for column in range(shape[1])]


def record_path(path: Path) -> Path:
    """Where the record of a CSV or JSON-lines file is written: beside it."""
    return path.with_name(f"{path.name}.record.json")


def write_scores(scores: Scores, path: Path, trace: bool = False) -> None:
    """Write scores in the format that the file's ending names.

    JSON holds ``record``, ``scores`` and ``skipped``; the rows of the other two have their record in a file beside
    them. Raises ``SettingsError`` for another ending.
    """
    check_suffix(path)
    write_atomically(path, format_scores(scores, path.suffix.lower(), trace))
    if path.suffix.lower() != ".json":
        write_atomically(record_path(path), _json(_about(scores), indent=1) + "\n")


def format_scores(scores: Scores, suffix: str, trace: bool = False) -> str:
    """The text of a file of scores; ``suffix`` is one of ``SUFFIXES``."""
    rows = score_rows(scores, trace)
    if suffix == ".json":
        return _json(_about(scores) | {"scores": rows}, indent=1) + "\n"
    if suffix == ".jsonl":
        return "".join(_json(row) + "\n" for row in rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image", "text", "score", *(["tokens"] if trace else []), "error"])
    writer.writeheader()
    writer.writerows(row | {"tokens": _json(row["tokens"])} if "tokens" in row else row for row in rows)
    return text.getvalue()


def _about(scores: Scores) -> dict[str, Any]:
    return {"record": scores.record, "skipped": scores.skipped}


def _json(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()  # a path that is no UTF-8


def short_names(names: Sequence[str]) -> list[str]:
    """As much of each path's end as tells it from the other paths.

    >>> short_names(["run/a/0.png", "run/b/0.png", "run/b/1.png"])
    ['a/0.png', 'b/0.png', '1.png']
    """
    parts = {name: name.replace("\\", "/").split("/") for name in names}
    shared = Counter("/".join(part[-length:]) for part in parts.values() for length in range(1, len(part) + 1))

    def shorten(name: str) -> str:
        ends = ("/".join(parts[name][-length:]) for length in range(1, len(parts[name]) + 1))
        return next((end for end in ends if shared[end] == 1), name)

    return [shorten(name) for name in names]


def format_score(value: float, largest: float) -> str:
    """Write a score as its neighbours are written: plainly, or with an exponent where all of them are tiny."""
    if value != value:
        return "-"
    return f"{value:.4f}" if largest >= 0.05 else f"{value:.3g}"
