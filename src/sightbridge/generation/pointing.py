"""Pointing at marks in words: what ``<bbox>`` in a question becomes."""

from __future__ import annotations

from collections.abc import Sequence

from sightbridge.data.regions.plans import PLACEHOLDER, fill_in
from sightbridge.errors import DataError
from sightbridge.visual_prompts import Mark


def point_at(question: str, marks: Sequence[Mark]) -> str:
    """Put the phrase of each mark where the question says ``<bbox0>``, ``<bbox1>``, or ``<bbox>`` for an only one.

    >>> from sightbridge.visual_prompts import Region
    >>> point_at("What is <bbox>?", [Mark(Region((10, 20, 110, 80)), "arrow")])
    'What is pointed to by the red arrow?'

    A question that says none of these stays as it is. Raises ``DataError`` for a mark that there is not.
    """
    for found in PLACEHOLDER.finditer(question):
        if not marks:
            raise DataError(
                f"the question says '{found[0]}', but nothing is marked. Say where it is (--bbox 100,200,200,300; in a "
                "chat ':mark 1 bbox=100,200,200,300'), or ask without it."
            )
        last = f"'<bbox{len(marks) - 1}>'"
        if not found[1] and len(marks) > 1:
            raise DataError(f"the question says '<bbox>', but there are {len(marks)} marks: write '<bbox0>' to {last}.")
        if found[1] and int(found[1]) >= len(marks):
            there = f"the marks are '<bbox0>' to {last}" if len(marks) > 1 else "the only mark is '<bbox0>'"
            raise DataError(f"the question says '{found[0]}', but {there}.")
    return fill_in(question, [mark.phrase for mark in marks])
