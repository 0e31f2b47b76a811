"""SHA-256 of pictures' contents, remembered by path, size and time so that no file is read twice for it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from sightbridge.errors import ImageError
from sightbridge.images.load import ImageSource, StoredImage, describe_source, image_key, read_bytes

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds: as long as both stay, so does the content."""

SAVE_EVERY = 1000
"""Hashes between writes to the file."""


class PictureHashes:
    """Hashes of picture files, known from the files ``hashes-*.jsonl`` in ``folder`` or computed when asked for.

    The files are only ever appended to, by one process each; a last line cut short by a kill is passed over.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[str, Stamp, str]] = {}  # by key: file, its stamp, hash
        self._checked: dict[str, str] = {}
        self._new: list[str] = []
        self.reload()

    def reload(self) -> None:
        """Read what this and other processes have written."""
        for path in sorted(self.folder.glob("hashes-*.jsonl")):
            for line in read_lines(path):
                stamp = line["size"], line["mtime_ns"]
                self._known[line["key"]] = line["path"], stamp, line["sha256"]

    def of(self, source: ImageSource) -> str:
        """SHA-256 of a picture's content, as hexadecimal digits.

        A file is looked at once per process: its features stay its own if it is exchanged in the middle of a run.

        Raises ``ImageError`` for a file that is not there or cannot be read.
        """
        key = image_key(source)
        if key.startswith("sha256:"):
            return key.removeprefix("sha256:")
        if key not in self._checked:
            self._checked[key] = self._look_at(key, source)
        return self._checked[key]

    def _look_at(self, key: str, source: ImageSource) -> str:
        path, name = _file_of(source), describe_source(source)
        if path is None or (stamp := _stamp(path)) is None:
            return hashlib.sha256(read_bytes(source, name)).hexdigest()  # type: ignore[arg-type]
        absolute = os.path.abspath(path)  # noqa: PTH100 - Path is several times slower
        key = key.replace(path, absolute, 1)
        known = self._known.get(key)
        if known and known[1] == stamp:
            return known[2]
        sha256 = hashlib.sha256(read_bytes(source, name)).hexdigest()  # type: ignore[arg-type]
        self._known[key] = absolute, stamp, sha256
        self._new.append(key)
        return sha256

    def learn(self, sources: Iterable[ImageSource], process: int = 0) -> None:
        """Hash what is new among ``sources`` and write it down in this process's file, a thousand at a time."""
        with (self.folder / f"hashes-{process}.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n")  # ends a line that a kill has cut short
            for source in sources:
                with suppress(ImageError):  # whoever opens the picture says so
                    self.of(source)
                if len(self._new) >= SAVE_EVERY:
                    self._write_new(file)
            self._write_new(file)

    def _write_new(self, file: TextIO) -> None:
        for key in self._new:
            path, (size, mtime_ns), sha256 = self._known[key]
            line = {"key": key, "path": path, "size": size, "mtime_ns": mtime_ns, "sha256": sha256}
            file.write(json.dumps(line) + "\n")
        file.flush()
        self._new.clear()

    def present(self) -> set[str]:
        """The contents of all known files that are still there and have not changed."""
        return {sha256 for path, stamp, sha256 in self._known.values() if _stamp(path) == stamp}


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, but for lines that a kill has cut short or a disk has damaged."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                if isinstance(found := json.loads(line), dict):
                    yield found


def _file_of(source: ImageSource) -> str | None:
    """The file that a picture is, or is in; ``None`` if it is in no single one."""
    path = getattr(source, "path", None) if isinstance(source, StoredImage) else source
    return str(path) if isinstance(path, str | Path) else None


def _stamp(path: str) -> Stamp | None:
    """The stamp of a file, ``None`` if it is not there."""
    try:
        status = os.stat(path)  # noqa: PTH116 - Path is several times slower
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
