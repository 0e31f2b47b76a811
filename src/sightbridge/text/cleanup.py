"""LAVIS' text clean-ups: what BLIP-2 was trained on had gone through them.

Both lower-case a text, take away the same signs, and cut it to 50 words, words being what lies between spaces
(lavis/processors/blip_processors.py). "?", "," and "'" survive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sightbridge.text.turns import IMAGE_MARKER, Role, Turn

SIGNS = r"[.!\"()*#:;~]"
MAX_WORDS = 50


def blip_caption(text: str) -> str:
    """Clean a caption: a space for every sign, single spaces, none at the ends.

    >>> blip_caption("A Dog.  Sits; there!")
    'a dog sits there'
    """
    text = re.sub(SIGNS, " ", text.lower())
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return _first_words(text)


def blip_question(text: str) -> str:
    """Clean a question: signs are deleted, not replaced ("5:30" becomes "530"), spaces at the end too.

    >>> blip_question("Is it 5:30?  ")
    'is it 530?'
    """
    return _first_words(re.sub(SIGNS, "", text.lower()).rstrip(" "))


def _first_words(text: str) -> str:
    return " ".join(text.split(" ")[:MAX_WORDS])


@dataclass(frozen=True)
class Cleanup:
    """A clean-up and the turns it is meant for."""

    clean: Callable[[str], str]
    role: Role


CLEANUPS = {
    "blip_caption": Cleanup(blip_caption, "assistant"),
    "blip_question": Cleanup(blip_question, "user"),
}
"""By the names LAVIS gives them. LAVIS cleans captions and questions, and leaves the answers to questions alone."""


def clean_turns(turns: Sequence[Turn], name: str) -> tuple[Turn, ...]:
    """Apply the clean-up ``name`` to the turns it is meant for; picture markers stay, and count as no words."""
    cleanup = CLEANUPS[name]
    return tuple(
        replace(turn, text=_clean_around_markers(turn.text, cleanup.clean))
        if turn.role == cleanup.role and turn.text is not None
        else turn
        for turn in turns
    )


def _clean_around_markers(text: str, clean: Callable[[str], str]) -> str:
    """Clean what lies between markers; the white space around it is the prompt's, not the text's."""
    parts = re.split(rf"(\s*{re.escape(IMAGE_MARKER)}\s*)", text)
    return "".join(part if IMAGE_MARKER in part else clean(part) for part in parts)
