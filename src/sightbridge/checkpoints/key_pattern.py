"""Patterns of weight names: ``encoder.layers.{n}.fc1.{x}`` stands for as many names as a model has layers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

PLACEHOLDERS = {"{n}": r"(0|[1-9][0-9]*)", "{x}": "(weight|bias)", "{*}": "(.+)"}
"""A number (of a layer), ``weight`` or ``bias``, and anything at all."""
_SPLIT = re.compile(r"(\{[^}]*\})")


@dataclass(frozen=True)
class Pattern:
    """Names with placeholders; two patterns of one rule have the same ones, filled alike in the order they come."""

    text: str

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """Literal texts and placeholders in turn."""
        return tuple(piece for piece in _SPLIT.split(self.text) if piece)

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The placeholders, sorted: two patterns with the same ones can be translated into each other."""
        return tuple(sorted(piece for piece in self.pieces if piece in PLACEHOLDERS))

    @property
    def unknown(self) -> str | None:
        """A placeholder that does not exist, if there is one."""
        return next((piece for piece in self.pieces if _SPLIT.fullmatch(piece) and piece not in PLACEHOLDERS), None)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile("".join(PLACEHOLDERS.get(piece) or re.escape(piece) for piece in self.pieces))

    def match(self, name: str) -> tuple[tuple[str, str], ...] | None:
        """What the placeholders stand for in ``name``: (placeholder, text) in order; ``None`` if it does not fit."""
        found = self._regex.fullmatch(name)
        if found is None:
            return None
        values = zip((piece for piece in self.pieces if piece in PLACEHOLDERS), found.groups(), strict=True)
        # Sorted by kind, the first {n} of one side belongs to the first {n} of the other, whatever stands between.
        return tuple(sorted(values, key=lambda value: value[0]))

    def fill(self, values: tuple[tuple[str, str], ...]) -> str:
        """The name in which the placeholders stand for ``values``."""
        left = list(values)
        name = ""
        for piece in self.pieces:
            if piece in PLACEHOLDERS:
                index = next(i for i, (placeholder, _) in enumerate(left) if placeholder == piece)
                name += left.pop(index)[1]
            else:
                name += piece
        return name


def overlap(one: Pattern, other: Pattern) -> bool:
    """Whether some name fits both patterns."""
    return any(_meet(a, b) for a in _spellings(one) for b in _spellings(other))


def _spellings(pattern: Pattern) -> list[tuple[str, ...]]:
    """The pattern as sequences of characters and repeating placeholders, one for every choice of weight or bias."""
    spellings: list[tuple[str, ...]] = [()]
    for piece in pattern.pieces:
        if piece == "{x}":
            spellings = [s + tuple(word) for s in spellings for word in ("weight", "bias")]
        else:
            spellings = [s + ((piece,) if piece in PLACEHOLDERS else tuple(piece)) for s in spellings]
    return spellings


def _meet(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Walk along both sequences at once: is there one text that brings both to their ends?"""
    waiting, seen = [(0, 0)], {(0, 0)}
    while waiting:
        i, j = waiting.pop()
        if i == len(one) and j == len(other):
            return True
        if i == len(one) or j == len(other) or not _share_character(one[i], other[j]):
            continue
        # A placeholder takes this character and is done, or takes it and goes on.
        steps = {(i + a, j + b) for a in _steps(one[i]) for b in _steps(other[j])} - seen
        seen |= steps
        waiting += steps
    return False


def _steps(symbol: str) -> tuple[int, ...]:
    return (0, 1) if symbol in PLACEHOLDERS else (1,)


def _share_character(one: str, other: str) -> bool:
    if "{*}" in (one, other):
        return True
    if one == "{n}":
        return other == "{n}" or other.isdigit()
    return one == other or (other == "{n}" and one.isdigit())
