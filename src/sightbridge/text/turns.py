"""Turns of a conversation: what every reader yields and every prompt template renders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]

IMAGE_MARKER = "<image>"
"""Stands in a turn's text where a picture goes; one marker per picture, in order.

It is resolved when the turn is rendered to pieces and never reaches a tokenizer, so no vocabulary needs to know it.
"""


@dataclass(frozen=True)
class Turn:
    """One message. ``text`` of ``None`` is an open assistant turn: the place where the model is to answer."""

    role: Role
    text: str | None
