"""Scores kept on disk, so that a run that was stopped goes on where it was and no pair is ever scored twice.

One SQLite file holds scores of any number of models and settings; several processes may write to it at the same time.
A score is found again by the model's fingerprint, all settings, the content of the picture, and the text: moving or
renaming pictures changes nothing, and touching a weight or a template changes everything.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sightbridge.errors import SettingsError
from sightbridge.scoring.kinds import Item, Scored, TokenScore

TABLES = """
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, description TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scores (
    run TEXT NOT NULL, picture TEXT NOT NULL, item TEXT NOT NULL, score REAL NOT NULL, tokens TEXT NOT NULL,
    PRIMARY KEY (run, picture, item)
) WITHOUT ROWID;
"""
MARK = 0x51616765
"""SQLite's ``application_id`` of our files."""
WAIT_SECONDS = 60
"""How long a process waits for another one's writing."""

Key = tuple[str, Item]
"""The hash of a picture's content, and an item."""


class ScoreStore:
    """The scores of one model under one set of settings, in a file that may hold others' too.

    Args:
        path: of the file; it is made if it is not there.
        description: all that the scores depend on besides picture and text, as JSON; it is kept for people to read.

    Raises ``SettingsError`` for a file that is no store, or cannot be written.
    """

    def __init__(self, path: Path, description: Mapping[str, Any]) -> None:
        self.path = path
        text = json.dumps(description, sort_keys=True, ensure_ascii=False)
        self.run = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        try:
            self.file = sqlite3.connect(path, timeout=WAIT_SECONDS)
            (mark,) = self.file.execute("PRAGMA application_id").fetchone()
            empty = self.file.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
            if mark != MARK and not empty:
                raise sqlite3.DatabaseError("another program's database")
            with self.file:
                self.file.execute(f"PRAGMA application_id = {MARK}")
                self.file.executescript(TABLES)
                self.file.execute("INSERT OR IGNORE INTO runs VALUES (?, ?)", (self.run, text))
        except sqlite3.Error as error:
            raise SettingsError(
                f"{path}: cannot keep scores in it ({error}). Name another file, or remove it if it is damaged."
            ) from error

    def find(self, keys: Iterable[Key]) -> dict[Key, Scored]:
        """Look scores up; those that are not there, or make no sense, are left out."""
        query = "SELECT score, tokens FROM scores WHERE run = ? AND picture = ? AND item = ?"
        found: dict[Key, Scored] = {}
        for key in keys:
            row = self.file.execute(query, (self.run, *_written(key))).fetchone()
            if row and (scored := _read(*row)):
                found[key] = scored
        return found

    def add(self, scored: Mapping[Key, Scored]) -> None:
        """Keep scores; they are on the disk when this returns."""
        rows = [(self.run, *_written(key), one.score, json.dumps(one.tokens)) for key, one in scored.items()]
        with self.file:
            self.file.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _written(key: Key) -> tuple[str, str]:
    picture, item = key
    return picture, json.dumps(item)  # in ASCII, so that half a character does no harm


def _read(score: Any, tokens: Any) -> Scored | None:
    try:
        scored = Scored(float(score), tuple(TokenScore(str(text), float(value)) for text, value in json.loads(tokens)))
    except (TypeError, ValueError):
        return None
    return scored if math.isfinite(scored.score) else None
