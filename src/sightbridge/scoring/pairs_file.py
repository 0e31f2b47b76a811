"""Pairs of picture and text from a CSV or JSON-lines file, every row checked."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sightbridge.errors import DataError

MAX_FIELD = 2**20
"""Longest field of a CSV file, in characters."""


class Pair(NamedTuple):
    """A picture's path and a text."""

    image: Path
    text: str


def read_pairs(path: Path, root: Path | None = None) -> list[Pair]:
    """Read rows with ``image`` and ``text``; further columns are not looked at.

    A relative path of a picture starts at ``root``, by default at the file's folder.

    Raises ``DataError``, naming file and row, for what cannot be read, and for a file without a row.
    """
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: pairs are read from {', '.join(readers)} files with 'image' and 'text'")
    pairs = []
    try:
        for number, row in readers[path.suffix.lower()](path):
            for name in ("image", "text"):
                if not isinstance(row.get(name), str) or not row[name].strip():
                    raise DataError(f"{path}, line {number}: has no '{name}'; expected a text under that name")
            pairs.append(Pair((root or path.parent) / row["image"], row["text"]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not pairs:
        raise DataError(f"{path}: holds no pairs")
    return pairs


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        if missing := [name for name in ("image", "text") if name not in (reader.fieldnames or ())]:
            raise DataError(f"{path}: its first line names no column '{missing[0]}'; expected 'image' and 'text'")
        for row in reader:
            if None in row:
                raise DataError(
                    f"{path}, line {reader.line_num}: has more fields than the first line names columns; a text with "
                    "commas stands in quotation marks"
                )
            yield reader.line_num, row


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: is no JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected an object with 'image' and 'text'")
            yield number, row
