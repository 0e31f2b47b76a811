"""Long lists of records that are read when they are looked at."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import overload

from sightbridge.data.record import Record
from sightbridge.text.cleanup import clean_turns
from sightbridge.text.turns import prompt_turns


class LazyRecords(Sequence[Record]):
    """A list of records that makes each one when it is asked for: a subclass says how many there are and reads one."""

    @abstractmethod
    def read(self, index: int) -> Record:
        """Make record ``index``, 0 <= ``index`` < ``len(self)``."""

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return select(self, range(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self.read(index % len(self))

    def __repr__(self) -> str:
        return f"<{len(self)} records>"


class Chained(LazyRecords):
    """Several lists, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Record]]) -> None:
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def read(self, index: int) -> Record:
        """Look the record up in the part that it is in."""
        part = bisect_right(self.ends, index)
        return self.parts[part][index - self.ends[part] + len(self.parts[part])]


class Selected(LazyRecords):
    """Some records of a list, by their places in it."""

    def __init__(self, records: Sequence[Record], places: Sequence[int]) -> None:
        self.records = records
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> Record:
        """Look up the record at the place chosen."""
        return self.records[self.places[index]]


class Prompted(LazyRecords):
    """The records of a list, what the user says written into a prompt (see ``sightbridge.text.turns``)."""

    def __init__(self, records: Sequence[Record], prompt: str) -> None:
        self.records = records
        self.prompt = prompt

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> Record:
        """Look up the record and write its words into the prompt."""
        record = self.records[index]
        return replace(record, turns=prompt_turns(record.turns, self.prompt, record.where or record.id))


class Cleaned(LazyRecords):
    """The records of a list, their texts cleaned up (see ``sightbridge.text.cleanup``)."""

    def __init__(self, records: Sequence[Record], clean: str) -> None:
        self.records = records
        self.clean = clean

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> Record:
        """Look up the record and clean its texts."""
        record = self.records[index]
        return replace(record, turns=clean_turns(record.turns, self.clean))


def select(records: Sequence[Record], places: Sequence[int]) -> Sequence[Record]:
    """Return the records at ``places``, which stay unread if ``records`` are; all places in order give ``records``."""
    if len(places) == len(records) and all(place == index for index, place in enumerate(places)):
        return records
    if isinstance(records, LazyRecords):
        return Selected(records, places)
    return [records[place] for place in places]
