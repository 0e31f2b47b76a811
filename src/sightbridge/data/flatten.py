"""Conversations of several questions to rows of one: what an encoder-decoder, whose decoder learns one answer, wants.

CLIP-FlanT5 flattens LLaVA-1.5's mixture this way (linzhiqiu/CLIP-FlanT5, ``convert_multi_turn_to_single_turn.py``). It
puts ``<image>`` into questions about text alone as well, which then wait for a picture that there is not; here, not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightbridge.config.load import atomic_file
from sightbridge.data.readers.llava import conversation_record
from sightbridge.data.readers.rows import Row, read_rows, take_texts
from sightbridge.errors import DataError, SettingsError
from sightbridge.text.turns import IMAGE_MARKER

Message = dict[str, Any]


@dataclass
class FlattenCounts:
    """Rows read, those of them with several questions, rows written, those of them without a picture, and opening
    turns of the assistant, which answer nothing and are left out."""

    read: int = 0
    several: int = 0
    written: int = 0
    text_only: int = 0
    openings: int = 0


def flatten(source: Path, out: Path, on_row: Callable[[], None] = lambda: None) -> FlattenCounts:
    """Write every question of LLaVA's conversations as a row of its own; ``on_row`` is called after each row read.

    The first question stays as it is. Each later one loses what was said before it and is shown the pictures so far,
    one ``<image>`` each in front; its row's id ends in its number (``s1-2``). A system turn goes to every row, all
    other keys stay. ``out`` is a JSON list with a row per line, or JSON lines if it ends in ``.jsonl``; it is not there
    until all of it is. One row at a time is held in memory.

    Raises:
        SettingsError: ``out`` does not end in ``.json`` or ``.jsonl``, or is the file that is read.
        DataError: a row is not in the format of the reader ``llava``, or its turns do not alternate.
    """
    if out.suffix not in (".json", ".jsonl") or out.is_dir():
        raise SettingsError(f"OUT: '{out}' should end in .json (a list) or .jsonl (a row per line)")
    if out.resolve() == source.resolve():
        raise SettingsError(f"OUT: '{out}' is the file that is read; give another name")
    as_list, counts = out.suffix == ".json", FlattenCounts()
    with atomic_file(out) as file:
        for _, where, row in read_rows(source):
            for single in flatten_row(row, where, counts):
                comma = "[\n" if counts.written == 0 else ",\n"
                file.write((comma if as_list else "") + json.dumps(single, ensure_ascii=False))
                file.write("" if as_list else "\n")
                counts.written += 1
                counts.text_only += "image" not in single
            counts.read += 1
            on_row()
        file.write("\n]\n" if as_list else "")
    return counts


def flatten_row(row: Row, where: str, counts: FlattenCounts) -> Iterator[Row]:
    """The rows of one conversation. Errors as for ``flatten``; what is left out is counted."""
    has_image = row.get("image") is not None
    names = take_texts(row, "image", where, "a file name or a list of them") if has_image else []
    conversation_record(row, names, "", where)  # refuses what the reader would refuse
    system, pairs = _pairs(row["conversations"], where, counts)
    counts.several += len(pairs) > 1
    asked = 0
    for number, (question, *answer) in enumerate(pairs, start=1):
        pair = [question | {"value": f"{IMAGE_MARKER}\n" * asked + question["value"]}, *answer]
        asked = _markers(pair)
        shown = _markers(system) + asked
        single = {key: value for key, value in row.items() if key != "image" or shown}
        if shown:
            single["image"] = row["image"] if shown == len(names) else names[0] if shown == 1 else names[:shown]
        if number > 1 and row.get("id") is not None:
            single["id"] = f"{row['id']}-{number}"
        yield single | {"conversations": [*system, *pair]}


def _markers(messages: list[Message]) -> int:
    return sum(message["value"].count(IMAGE_MARKER) for message in messages)


def _pairs(messages: list[Message], where: str, counts: FlattenCounts) -> tuple[list[Message], list[list[Message]]]:
    """The system turn, if there is one, and questions with their answers; the last may wait for its answer."""
    system, rest = (messages[:1], messages[1:]) if messages[0]["from"] == "system" else ([], messages)
    if len(rest) > 1 and rest[0]["from"] == "gpt":
        if IMAGE_MARKER in rest[0]["value"]:
            raise DataError(f"{where}: an opening turn of the assistant, which would be left out, holds a picture.")
        rest = rest[1:]
        counts.openings += 1
    for place, message in enumerate(rest):
        expected = "gpt" if place % 2 else "human"
        if message["from"] != expected:
            turn = place + 1 + len(messages) - len(rest)
            raise DataError(f"{where}, turn {turn}: expected one from '{expected}', got one from '{message['from']}'.")
    if not rest:
        raise DataError(f"{where}: holds no question.")
    return system, [rest[start : start + 2] for start in range(0, len(rest), 2)]
