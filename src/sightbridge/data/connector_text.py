"""What is asked about a picture, for a connector that reads it beside the picture (BLIP-2's VQA, InstructBLIP)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sightbridge.text.turns import IMAGE_MARKER, LITERAL_MARKER, Turn

MARKER_AND_BREAK = re.compile(f"{IMAGE_MARKER}\n|\n{IMAGE_MARKER}|{IMAGE_MARKER}")
"""A marker with the line break that sets it off."""


@dataclass(frozen=True)
class ConnectorText:
    """The connector's tokenizer (see ``load_caption_tokenizer``), and the longest question, [CLS] and [SEP] included.

    Questions are written the way the first stage writes its captions, which is where the connector learned to read.
    """

    tokenizer: Any
    max_length: int

    def ids(self, turns: Sequence[Turn]) -> list[list[int]]:
        """Ids of the question about each picture; none at all where nothing is asked. Too long ones lose their end."""
        return [self._question_ids(question) if question else [] for question in questions(turns)]

    def _question_ids(self, question: str) -> list[int]:
        words = self.tokenizer(question, add_special_tokens=False)["input_ids"][: self.max_length - 2]
        return [self.tokenizer.cls_token_id, *words, self.tokenizer.sep_token_id]


def questions(turns: Sequence[Turn]) -> list[str]:
    """The words of the user turn that holds each picture, without markers and without anything a template adds."""
    found: list[str] = []
    for turn in turns:
        text = turn.text or ""
        words = MARKER_AND_BREAK.sub("", text).strip() if turn.role == "user" else ""
        found += [words.replace(LITERAL_MARKER, IMAGE_MARKER)] * text.count(IMAGE_MARKER)
    return found
