"""Rows that are read when they are looked at, from files with a row on every line."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from pathlib import Path

from sightbridge.data.readers.rows import Row, read_rows
from sightbridge.data.record import Record
from sightbridge.data.records import LazyRecords
from sightbridge.errors import DataError

MakeRecord = Callable[[Row, int, str], Record]
"""Makes a record of a row, its number, counted from 1, and where it is."""


class IndexedRecords(LazyRecords):
    """Records of a JSON-lines file, or of a JSON list with a line for every row: eight bytes in memory for each."""

    def __init__(self, path: Path, make: MakeRecord, places: array[int], unit: str) -> None:
        self.path = path
        self.make = make
        self.places = places
        self.unit = unit

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> Record:
        """Read the row's line and make its record; raises ``DataError`` if the file has changed meanwhile."""
        where = f"{self.path}, {self.unit} {index + 1}"
        with self.path.open("rb") as file:
            file.seek(self.places[index])
            row = _parse(file.readline())
        if row is None:
            raise DataError(f"{where}: is not what it was when the file was opened. Was the file replaced?")
        return self.make(row, index + 1, where)


class HeldRecords(LazyRecords):
    """Records of rows in memory, for files in any other form."""

    def __init__(self, rows: list[tuple[int, str, Row]], make: MakeRecord) -> None:
        self.rows = rows
        self.make = make

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Record:
        """Make the record of a row."""
        number, where, row = self.rows[index]
        return self.make(row, number, where)


def index_records(path: Path, make: MakeRecord) -> IndexedRecords | HeldRecords:
    """Check every row of a file by making its record once, and remember where the rows are.

    Raises ``DataError`` as ``read_rows`` and ``make`` do.
    """
    found = _index(path, make)
    if found is not None:
        return found
    rows = []
    for number, where, row in read_rows(path):
        make(row, number, where)
        rows.append((number, where, row))
    return HeldRecords(rows, make)


def _index(path: Path, make: MakeRecord) -> IndexedRecords | None:
    """The index, or ``None`` if the file has no row on every line, which may be an error or not."""
    places = array("Q")
    unit, place, goes_on = "line", 0, True
    try:
        with path.open("rb") as file:
            for line in file:
                stripped = line.strip()
                if place == 0 and stripped == b"[":
                    unit = "row"
                elif stripped == b"]" and unit == "row" and not goes_on and not file.read().strip():
                    break
                else:
                    row = _parse(stripped, is_listed=unit == "row")
                    if row is None or not goes_on:
                        return None
                    goes_on = unit == "line" or stripped.endswith(b",")
                    make(row, len(places) + 1, f"{path}, {unit} {len(places) + 1}")
                    places.append(place)
                place += len(line)
            else:
                if unit == "row":
                    return None  # the list has no end
    except OSError:
        return None
    return IndexedRecords(path, make, places, unit) if places else None


def _parse(line: bytes, is_listed: bool = True) -> Row | None:
    try:
        row = json.loads(line.strip().removesuffix(b",") if is_listed else line)
    except (RecursionError, ValueError):  # of JSON or of UTF-8
        return None
    return row if isinstance(row, dict) else None
