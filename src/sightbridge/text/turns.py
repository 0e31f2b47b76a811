"""Turns of a conversation: what every reader yields and every prompt template renders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sightbridge.errors import DataError

Role = Literal["system", "user", "assistant"]

IMAGE_MARKER = "<image>"
"""Stands in a turn's text where a picture goes; one marker per picture, in order.

It is resolved when the turn is rendered to pieces and never reaches a tokenizer, so no vocabulary needs to know it.
"""

LITERAL_MARKER = "<\u2060image>"
"""Stands for the characters ``<image>`` where somebody wrote them and means no picture; it looks the same."""


@dataclass(frozen=True)
class Turn:
    """One message. ``text`` of ``None`` is an open assistant turn: the place where the model is to answer."""

    role: Role
    text: str | None


def as_text(text: str) -> str:
    """Keep what looks like a marker in ``text`` from becoming a picture: for formats that mark pictures otherwise."""
    return text.replace(IMAGE_MARKER, LITERAL_MARKER)


def prompt_turns(turns: Sequence[Turn], prompt: str, where: str) -> tuple[Turn, ...]:
    """Write the words of every user turn into ``prompt`` where it has ``{}``; pictures in front stay in front.

    A turn without words takes a prompt without ``{}``, as for captions. Raises ``DataError``, naming ``where``, for
    words that such a prompt would lose.

    >>> prompt_turns([Turn("user", "<image>\\n<image>\\nBoth are red.")], 'Is it correct to say "{}"?', "row 1")[0].text
    '<image>\\n<image>\\nIs it correct to say "Both are red."?'
    """
    return tuple(
        replace(turn, text=_prompt_text(turn.text or "", prompt, where)) if turn.role == "user" else turn
        for turn in turns
    )


def _prompt_text(text: str, prompt: str, where: str) -> str:
    found = re.match(rf"(\s*{IMAGE_MARKER})*\s*", text)
    assert found is not None, "the pattern matches nothing, too"
    pictures, words = found[0], text[found.end() :]
    if words and "{}" not in prompt:
        raise DataError(f"{where}: the prompt '{prompt}' has no '{{}}' for the words of this turn: {words!r}")
    if pictures and not pictures[-1].isspace():
        pictures += "\n"
    return pictures + prompt.replace("{}", words)
