"""What is asked about a picture, for a connector that reads it beside the picture (BLIP-2's VQA, InstructBLIP)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sightbridge.text.turns import IMAGE_MARKER, Turn

MARKER_AND_BREAK = re.compile(f"{IMAGE_MARKER}\n|\n{IMAGE_MARKER}|{IMAGE_MARKER}")
"""A marker with the line break that sets it off."""


@dataclass(frozen=True)
class ConnectorText:
    """The connector's own tokenizer, and the longest question in its tokens, special ones included."""

    tokenizer: Any
    max_length: int

    def ids(self, turns: Sequence[Turn]) -> list[list[int]]:
        """Ids of the question about each picture; none at all where nothing is asked.

        A question that is too long loses its end, as in LAVIS; a closing special token is kept.
        """
        asked = {question for question in questions(turns) if question}
        encoded = {
            question: self.tokenizer(question, truncation=True, max_length=self.max_length)["input_ids"]
            for question in asked
        }
        return [encoded.get(question, []) for question in questions(turns)]


def questions(turns: Sequence[Turn]) -> list[str]:
    """The words of the user turn that holds each picture, without markers and without anything a template adds."""
    found: list[str] = []
    for turn in turns:
        text = turn.text or ""
        words = MARKER_AND_BREAK.sub("", text).strip() if turn.role == "user" else ""
        found += [words] * text.count(IMAGE_MARKER)
    return found
