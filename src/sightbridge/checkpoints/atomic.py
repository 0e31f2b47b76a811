"""Writing a folder so that, whenever the process is killed, either the old one or the new one is there, whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
