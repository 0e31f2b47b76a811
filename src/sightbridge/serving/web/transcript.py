"""A conversation as the messages of a ``gr.Chatbot``, and back from a message's number to what it is."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import gradio as gr

from sightbridge.serving.web.talk import Talk

JOINER = "\u2060"
"""An invisible character."""
MARKUP = re.compile(r"<(?=[a-zA-Z/!?])|&(?=[a-zA-Z#])")
"""Where a browser would begin to read markup."""


class Line(NamedTuple):
    """One message that is shown, and the number of the question that it belongs to."""

    number: int
    kind: Literal["pictures", "question", "answer", "note"]
    text: str


def transcript(talk: Talk, side: int) -> list[dict[str, Any]]:
    """What a side's conversation looks like. Questions and answers are plain text; notes under them are ours."""
    shown = []
    for line in _lines(talk, side):
        role = "user" if line.kind in ("pictures", "question") else "assistant"
        is_text = line.kind in ("question", "answer")
        shown.append({"role": role, "content": as_shown(line.text) if is_text else gr.HTML(line.text)})
    return shown


def as_shown(text: str) -> str:
    """Text that a browser shows as it is: ``gr.Chatbot`` reads HTML even where it is told to read no Markdown."""
    return MARKUP.sub(lambda found: found[0] + JOINER, text)


def as_typed(text: str) -> str:
    """The opposite, for a text that was shown and edited."""
    return text.replace(JOINER, "")


def exchange_at(talk: Talk, side: int, message: Any) -> int:
    """The number of the question that a message belongs to, the last one for what is no message."""
    lines = list(_lines(talk, side))
    number = message[0] if isinstance(message, list | tuple) else message
    return lines[number].number if isinstance(number, int) and 0 <= number < len(lines) else -1


def answer_at(talk: Talk, side: int, message: Any) -> int | None:
    """The number of the question whose answer a message shows; ``None`` if it shows none."""
    number = exchange_at(talk, side, message)
    if not talk.exchanges or len(talk.exchanges[number].answers) <= side:
        return None
    return number if number >= 0 else len(talk.exchanges) - 1


def _lines(talk: Talk, side: int) -> Iterator[Line]:
    for number, exchange in enumerate(talk.exchanges):
        if exchange.pictures:
            images = "".join(f'<img src="{picture.thumbnail}" alt="picture">' for picture in exchange.pictures)
            yield Line(number, "pictures", f'<div class="shown">{images}</div>')
        yield Line(number, "question", exchange.words or exchange.question)
        answer = exchange.answer(side)
        if not answer:
            continue
        if answer.text:
            yield Line(number, "answer", answer.text)
        if answer.error:
            yield Line(number, "note", f'<div class="failed" role="alert">{html.escape(answer.error)}</div>')
        elif answer.timing:
            empty = "" if answer.text else "The answer is empty. "
            yield Line(number, "note", f'<div class="timing">{empty}{html.escape(answer.timing)}</div>')
