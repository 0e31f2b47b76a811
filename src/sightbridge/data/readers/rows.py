"""Rows of annotation files, and the checks every reader makes on them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from sightbridge.errors import DataError
from sightbridge.images.load import ImageSource

Row = dict[str, Any]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Of the files that are read as tables with a line of column names on top; every cell is a text."""


def read_rows(path: Path) -> Iterator[tuple[int, str, Row]]:
    """Yield ``(number, where, row)`` for every row of a CSV or TSV table, JSON list or JSON-lines file, from 1 on.

    A table is known by its name (see ``DELIMITERS``); which kind of JSON it is shows in the first character. Blank
    lines are skipped, and empty cells of a table left out of their rows. Raises ``DataError`` for a file that is
    missing, not UTF-8, not JSON or a table, or made of anything but objects.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="" if path.suffix in DELIMITERS else None) as file:
            rows = _table_rows(path, file) if path.suffix in DELIMITERS else _json_rows(path, file)
            empty = True
            for number, where, row in rows:
                empty = False
                if not isinstance(row, dict):
                    raise DataError(f"{where}: expected an object {{...}}, got {_kind(row)}.")
                yield number, where, row
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotation file: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start}).") from error
    if empty:
        raise DataError(f"{path}: holds no rows. Expected a JSON list of objects, or one object per line.")


def _json_rows(path: Path, file: TextIO) -> Iterator[tuple[int, str, Any]]:
    first = file.read(1)
    while first.isspace():
        first = file.read(1)
    file.seek(0)
    return _list_rows(path, file.read()) if first == "[" else _line_rows(path, file)


def _table_rows(path: Path, file: TextIO) -> Iterator[tuple[int, str, Any]]:
    reader = csv.DictReader(file, delimiter=DELIMITERS[path.suffix], strict=True)
    try:
        for number, row in enumerate(reader, start=1):
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise DataError(
                    f"{where}: has more cells than the {len(reader.fieldnames or ())} columns named in the first line. "
                    'A cell with the delimiter in it needs "quotes" around it.'
                )
            yield number, where, {column: cell for column, cell in row.items() if cell not in (None, "")}
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not a table of cells: {error}.") from error


def _list_rows(path: Path, text: str) -> Iterator[tuple[int, str, Any]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: broken JSON: {error.msg}.") from error
    for number, row in enumerate(rows, start=1):
        yield number, f"{path}, row {number}", row


def _line_rows(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield number, where, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}, column {error.colno}: broken JSON: {error.msg}. Expected a JSON list of objects, or one "
                "object per line."
            ) from error


def take(row: Row, key: str, types: tuple[type, ...], where: str, expected: str) -> Any:
    """Return ``row[key]``, which must be there and of one of ``types``; ``expected`` says what it is in words."""
    if key not in row:
        raise DataError(f"{where}: key '{key}' is missing, expected {expected}. The row has: {', '.join(row) or '-'}.")
    value = row[key]
    if not isinstance(value, types) or isinstance(value, bool):
        raise DataError(f"{where}, key '{key}': expected {expected}, got {_kind(value)}.")
    return value


def take_texts(row: Row, key: str, where: str, expected: str) -> list[str]:
    """Return ``row[key]``, a text or a list of texts, as a list."""
    value = take(row, key, (str, list), where, expected)
    texts = [value] if isinstance(value, str) else value
    for position, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise DataError(f"{where}, key '{key}', item {position}: expected a text, got {_kind(text)}.")
    return texts


def take_id(row: Row, key: str, where: str) -> str | None:
    """Return ``row[key]``, a text or a number, as text; ``None`` if it is not there."""
    return str(take(row, key, (str, int), where, "a text or a number")) if row.get(key) is not None else None


def find_image(name: str, folder: Path) -> ImageSource:
    """Return the picture that a row calls ``name``: a file in ``folder``, or a ``data:`` URL as it is."""
    return name if name.startswith("data:") else folder / name


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"{value!r}")
