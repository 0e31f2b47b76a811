"""Writing a folder so that, whenever the process is killed, either the old one or the new one is there, whole."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sightbridge.errors import CheckpointError

JOURNAL = ".journal.jsonl"
"""Of a resumable folder: the job, then each finished file and its size."""


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` to write into; at the end it takes the place of ``target``.

    Everything is flushed to the disk before that. If the block raises, ``target`` stays as it was. A kill at the worst
    moment, between moving the old folder away and the new one in, leaves the old one where ``existing_folder``
    finds it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    partial, previous = _beside(target, "partial"), _beside(target, "previous")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed save
    partial.mkdir()
    try:
        yield partial
        _flush(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        target.rename(previous)
    partial.rename(target)
    _flush_entry(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target`` to write a file to; at the end it takes the place of ``target``.

    If the block raises, or the process is killed, ``target`` stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target, "partial")
    try:
        yield partial
        _flush_entry(partial)
        partial.replace(target)
        _flush_entry(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def existing_folder(target: Path) -> Path:
    """Return where ``target`` is now: at its place, or moved away by a save that is under way or was killed."""
    if not target.name:
        return target  # "." and "/" have nothing beside them
    previous = _beside(target, "previous")
    return previous if previous.exists() and not target.exists() else target


def _recover(target: Path) -> None:
    """Put the old folder back if a save was killed while it was moved away; clean up after one that was done."""
    previous = _beside(target, "previous")
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
    elif previous.exists():
        previous.rename(target)


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")


def _flush(folder: Path) -> None:
    """Have the system write the folder and all that is in it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _flush_entry(path)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Resumable:
    """A hidden folder under way, and the journal of its files that are finished.

    Attributes:
        folder: where to write; the files of a killed run of the same job are in it.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self.folder = folder
        self._journal = folder / JOURNAL
        self._sizes: dict[str, int] = {}
        if (lines := _journal_lines(self._journal)) and lines[0] == {"job": job}:
            self._sizes = {line["file"]: line["bytes"] for line in lines[1:]}
        else:
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            self._note({"job": job})

    @property
    def resumed(self) -> int:
        """How many files an earlier run had finished."""
        return len(self._sizes)

    def has(self, path: Path) -> bool:
        """Whether ``path`` inside ``folder`` is finished already."""
        size = self._sizes.get(path.relative_to(self.folder).as_posix())
        return size is not None and path.is_file() and path.stat().st_size == size

    def finish(self, path: Path) -> None:
        """Note that ``path`` inside ``folder`` is written, and need not be again."""
        _flush_entry(path)
        name, size = path.relative_to(self.folder).as_posix(), path.stat().st_size
        self._sizes[name] = size
        self._note({"file": name, "bytes": size})

    def _note(self, line: dict[str, Any]) -> None:
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def resumable_folder(target: Path, job: Mapping[str, Any]) -> Iterator[Resumable]:
    """Like ``atomic_folder``, but what a killed run has finished is kept for the next one of the same job.

    Args:
        target: the folder to take the place of at the end.
        job: everything the result depends on, as JSON values: ``identity_of`` each source, settings. What another
            job left is thrown away.

    Yields:
        Where to write, and the journal. If the block raises, ``target`` stays as it was and the finished files stay
        for the next attempt.

    Raises:
        CheckpointError: another process is writing to the same ``target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    partial = _beside(target, "resumable")
    partial.mkdir(exist_ok=True)
    with alone_in(partial, target):
        work = Resumable(partial, json.dumps(job, sort_keys=True))
        yield work
        (partial / JOURNAL).unlink()
        _flush(partial)
        previous = _beside(target, "previous")
        if target.exists():
            target.rename(previous)
        partial.rename(target)
        _flush_entry(target.parent)
        shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def alone_in(folder: Path, target: Path) -> Iterator[None]:
    """Hold a lock on ``folder``, which the system lifts when the process ends however it ends.

    Raises ``CheckpointError`` if another process holds it; ``target`` is what that one writes.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"{target}: another process is writing it. Wait until it has ended.") from error
        yield
    finally:
        os.close(descriptor)


def identity_of(path: Path) -> list[list[Any]]:
    """What tells that a file, or the files directly in a folder, are still the same: path, bytes, time of change."""
    path = path.resolve()
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _journal_lines(journal: Path) -> list[dict[str, Any]]:
    """Whole lines of a journal; one that a kill cut off is left out."""
    if not journal.is_file():
        return []
    lines = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
