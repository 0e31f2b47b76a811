"""Rows of annotation files, and the checks every reader makes on them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from sightbridge.errors import DataError
from sightbridge.images.load import ImageSource

Row = dict[str, Any]

WINDOW = 2**20
"""Characters of a JSON list that are read at a time."""
DECODER = json.JSONDecoder()
AFTER_ELEMENT = tuple(",] \t\n\r")
WHITE_SPACE = re.compile(r"[ \t\n\r]*")

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Of the files that are read as tables with a line of column names on top; every cell is a text."""


def read_rows(path: Path) -> Iterator[tuple[int, str, Row]]:
    """Yield ``(number, where, row)`` for every row of a CSV or TSV table, JSON list or JSON-lines file, from 1 on.

    A file that is one JSON object over many lines is its only row.

    A table is known by its name (see ``DELIMITERS``); which kind of JSON it is shows in the first character. Blank
    lines are skipped, and empty cells of a table left out of their rows. Raises ``DataError`` for a file that is
    missing, not UTF-8, not JSON or a table, or made of anything but objects.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise DataError(f"{path}: is {kind}, expected an annotation file.")
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
    if first == "[":
        return _list_rows(path, file)
    if first == "{" and not _is_json(file.readline()):  # neither the first row, nor a file of one line
        file.seek(0)
        with suppress(ValueError, RecursionError):
            return iter([(1, str(path), json.load(file))])
    file.seek(0)
    return _line_rows(path, file)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


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


def _list_rows(path: Path, file: TextIO) -> Iterator[tuple[int, str, Any]]:
    """The elements of a JSON list, decoded one by one, so that a list of millions is never in memory as a whole."""
    for number, row in enumerate(_Elements(path, file), start=1):
        yield number, f"{path}, row {number}", row


class _Elements:
    """Decodes the elements of a JSON list from a window on the file, which moves on once they are read."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.file = file
        self.window = ""
        self.place = 0
        self.line, self.column = 1, 1  # of the window's beginning
        self.is_all = False

    def __iter__(self) -> Iterator[Any]:
        self._peek()
        self.place += 1  # the bracket
        separator = "" if self._peek() == "]" else ","
        while separator == ",":
            yield self._decode()
            separator = self._peek()
            if separator not in (",", "]"):
                raise self._broken("Expecting ',' delimiter", self.place)
            self.place += separator == ","
        self.place += 1
        if self._peek():
            raise self._broken("Extra data", self.place)

    def _decode(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.window, self.place)
            except json.JSONDecodeError as error:
                if self.is_all:
                    raise self._broken(error.msg, error.pos) from error
            except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
                raise self._broken(str(error), self.place) from error
            else:
                if self.is_all or self.window[end : end + 1] in AFTER_ELEMENT:  # else a number may go on
                    self.place = end
                    return value
            self._read_on()

    def _peek(self) -> str:
        """The next character that is no white space, "" at the end of the file."""
        while True:
            self.place = WHITE_SPACE.match(self.window, self.place).end()  # type: ignore[union-attr] (matches always)
            if self.place < len(self.window) or self.is_all:
                return self.window[self.place : self.place + 1]
            self._read_on()

    def _read_on(self) -> None:
        """Forget what is done with, and read as much again as is left, so that a large element is tried few times."""
        self.line, self.column = self._position(self.place)
        rest = self.window[self.place :]
        more = self.file.read(max(WINDOW, len(rest)))
        self.window, self.place, self.is_all = rest + more, 0, not more

    def _broken(self, message: str, place: int) -> DataError:
        line, column = self._position(place)
        return DataError(f"{self.path}, line {line}, column {column}: broken JSON: {message}.")

    def _position(self, place: int) -> tuple[int, int]:
        """Line and column of a place in the window, as a whole file's are counted."""
        lines = self.window.count("\n", 0, place)
        return self.line + lines, place - self.window.rfind("\n", 0, place) if lines else self.column + place


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
        except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
            raise DataError(f"{where}: broken JSON: {error}.") from error


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
