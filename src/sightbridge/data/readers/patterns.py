"""Names of several files in one: ``shard-{000..099}.tar``, ``{train,val}.parquet``, ``*.tar``."""

from __future__ import annotations

import re
from glob import glob, has_magic
from pathlib import Path

from sightbridge.errors import DataError

MAX_FILES = 1_000_000
"""Bound on the numbers in one pair of braces; LAION-5B has 231,349 tars."""


def expand_pattern(pattern: Path) -> list[Path]:
    """Return the files that ``pattern`` names: those in braces in their order, those of a wild card by name.

    Raises ``DataError`` if one of them is missing, or a wild card fits none.
    """
    if pattern.exists():
        return [pattern]
    paths: list[Path] = []
    for name in _expand_braces(str(pattern)):
        found = sorted(glob(name, recursive=True)) if has_magic(name) else [name]  # noqa: PTH207 (patterns from "/" on)
        if not found:
            raise DataError(f"{pattern}: no file fits '{name}'.")
        paths += map(Path, found)
    missing = [path for path in paths if not path.exists()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{pattern}: of {len(paths)} files these are missing: {missing[0]}{others}.")
    return paths


def _expand_braces(name: str) -> list[str]:
    """Write out the first pair of braces, then the rest: "a{1,2}{x,y}" gives a1x, a1y, a2x, a2y."""
    braces = re.search(r"\{([^{}]*)\}", name)
    if not braces:
        return [name]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if numbers:
        first, last = numbers.groups()
        if int(last) - int(first) >= MAX_FILES:
            raise DataError(f"{name}: {{{braces[1]}}} names more than {MAX_FILES:,} files. Is a number in it wrong?")
        width = len(first) if first.startswith("0") else 0
        inside = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    elif "," in braces[1]:
        inside = braces[1].split(",")
    else:
        return [name]
    head, tail = name[: braces.start()], name[braces.end() :]
    return [head + middle + rest for middle in inside for rest in _expand_braces(tail)]
