"""Writing a mixture: rows of all parts, shuffled, and what is in them."""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

from sightbridge.config.load import write_atomically
from sightbridge.data.mix.compose import Composer, Row
from sightbridge.data.mix.plan import MixPlan, PartPlan, Progress
from sightbridge.errors import SettingsError


@dataclass
class PartCounts:
    """What became of one part. ``lost``: languages that were asked for and got no row."""

    rows: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    untranslated: int = 0


@dataclass
class MixResult:
    """Statistics by part, and some rows to look at."""

    parts: dict[str, PartCounts]
    examples: list[Row]

    @property
    def total(self) -> int:
        """Number of rows."""
        return sum(part.rows.total() for part in self.parts.values())


def count_plan(plan: MixPlan) -> MixResult:
    """What a mixture will hold, as far as that is known before anything is translated."""
    return MixResult({part.name: _count(part, plan, Counter(part.rows), Counter()) for part in plan.parts}, [])


def check_out(out: Path) -> None:
    """Raise ``SettingsError`` for a file that ``write_mix`` does not write: planning a mixture may take hours."""
    if out.suffix not in (".json", ".jsonl") or out.is_dir():
        raise SettingsError(f"--out: '{out}' should end in .json (a list, as mBLIP's) or .jsonl (a row per line)")


def write_mix(
    plan: MixPlan, out: Path, *, examples: int = 0, on_progress: Progress = lambda what, done, total: None
) -> MixResult:
    """Write a mixture as mBLIP's rows: a JSON list with a row per line, or JSON lines if ``out`` ends in ``.jsonl``.

    Beside it, ``NAME.statistics.json`` says what is in it and how it was made. The same settings and raw files give the
    same bytes; nothing is there until all of it is. ``examples``: so many rows are returned to look at, from all parts.
    """
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    counts: dict[str, PartCounts] = {}
    shown: list[list[Row]] = []
    places = array("Q")
    with _temporary(out, "rows") as rows_path, _temporary(out, "tmp") as result_path:
        with rows_path.open("wb") as file:
            done = 0
            for part in plan.parts:
                composer, rows, some = Composer(part, plan), Counter[str](), _Examples(examples)
                for row in composer.rows():
                    done += 1
                    if done % 500 == 0:
                        on_progress(f"writing {part.name}", done, plan.total)
                    if row is not None:
                        places.append(file.tell())
                        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                        rows[row["language"]] += 1
                        some.see(row)
                counts[part.name] = _count(part, plan, rows, composer.dropped)
                shown.append(some.rows)
        if plan.settings.order == "shuffled":
            Random(f"{plan.settings.seed}/order").shuffle(places)
        with rows_path.open("rb") as source, result_path.open("wb") as target:
            _copy(source, places, target, as_list=out.suffix == ".json")
        result_path.replace(out)
    result = MixResult(counts, _in_turn(shown)[:examples])
    _write_statistics(plan, result, out)
    return result


def _count(part: PartPlan, plan: MixPlan, rows: Counter[str], dropped: Counter[str]) -> PartCounts:
    translator = plan.settings.translator
    is_identity = translator is not None and translator.kind == "identity"
    is_translated = part.places is not None and bool(part.kind.translated)
    foreign = sum(count for code, count in rows.items() if code != plan.source_language)
    untranslated = foreign if is_identity and is_translated else 0
    return PartCounts(rows, dict(part.dropped + dropped), part.lost, untranslated)


def _copy(source: BinaryIO, places: Iterable[int], target: BinaryIO, as_list: bool) -> None:
    """Copy the lines at ``places``, in their order."""
    if as_list:
        target.write(b"[")
    for number, place in enumerate(places):
        source.seek(place)
        line = source.readline()
        target.write((b",\n" if number else b"\n") + line.rstrip(b"\n") if as_list else line)
    if as_list:
        target.write(b"\n]\n")
    target.flush()
    os.fsync(target.fileno())


@contextmanager
def _temporary(out: Path, what: str) -> Iterator[Path]:
    """A file beside ``out`` that is gone at the end, unless it was renamed."""
    path = out.with_name(f".{out.name}.{os.getpid()}.{what}")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


class _Examples:
    """Some rows of a part, of different languages as far as there are."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._by_language: dict[str, list[Row]] = {}

    def see(self, row: Row) -> None:
        found = self._by_language.setdefault(row["language"], [])
        if len(found) < self.wanted:
            found.append(row)

    @property
    def rows(self) -> list[Row]:
        return _in_turn(list(self._by_language.values()))[: self.wanted]


def _in_turn(lists: list[list[Row]]) -> list[Row]:
    """The first of each list, then the second of each, and so on."""
    longest = max(map(len, lists), default=0)
    return [rows[place] for place in range(longest) for rows in lists if place < len(rows)]


def _write_statistics(plan: MixPlan, result: MixResult, out: Path) -> None:
    parts: dict[str, Any] = {}
    for name, part in result.parts.items():
        parts[name] = {"rows": part.rows.total(), "languages": dict(part.rows.most_common()), "dropped": part.dropped}
        parts[name] |= {"languages_without_rows": part.lost, "untranslated_rows": part.untranslated}
    content = {"rows": result.total, "parts": parts, "settings": plan.settings.model_dump()}
    write_atomically(out.with_suffix(".statistics.json"), json.dumps(content, ensure_ascii=False, indent=1) + "\n")
