"""A conversation of the page: what was asked about which pictures, and what one or two models answered."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sightbridge.serving.engines.request import Finished
from sightbridge.serving.engines.ticket import Ticket
from sightbridge.serving.web.thumbnails import thumbnail

FEWEST_TIMED = 8
"""Tokens of an answer that says how fast it was written; of fewer the number would mean nothing."""


class Shown(Protocol):
    """A picture with its marks, as the page's box gives it."""

    @property
    def file(self) -> str:
        """The id of what was uploaded."""
        ...

    @property
    def data(self) -> bytes:
        """The encoded picture."""
        ...

    @property
    def regions(self) -> list[dict[str, Any]]:
        """Its marks, as the API has them."""
        ...

    @property
    def part(self) -> dict[str, Any]:
        """The part of a message of the API."""
        ...


@dataclass(frozen=True)
class AskedPicture:
    """What a conversation remembers of a picture. The picture itself is among the server's files, which are bounded.

    ``file`` is the id of what was uploaded, the same with other marks. ``thumbnail``: a small copy for the page.
    """

    file: str
    part: dict[str, Any]
    sha256: str
    thumbnail: str

    @classmethod
    def of(cls, shown: Shown, seen: int) -> AskedPicture:
        """``seen``: as for ``thumbnail``. Raises ``ApiError`` for a mark outside of the picture."""
        small = thumbnail(shown.data, shown.regions, seen)
        return cls(shown.file, shown.part, hashlib.sha256(shown.data).hexdigest(), small)


@dataclass
class Answer:
    """What one model answers: as far as it is written, how it ended, or which error ended it."""

    model: str
    text: str = ""
    finished: Finished | None = None
    error: str = ""

    @property
    def timing(self) -> str:
        """How long it took, in words; empty while it is written."""
        done = self.finished
        if done is None:
            return ""
        told = [f"{done.seconds:.1f} s"]
        if done.waited >= 0.1:
            told.append(f"waited {done.waited:.1f} s")
        if done.first_token is not None:
            told.append(f"first token {done.first_token:.2f} s")
            writing = done.seconds - done.first_token
            if done.completion_tokens >= FEWEST_TIMED and writing > 0:
                told.append(f"{(done.completion_tokens - 1) / writing:.0f} tokens/s")
        told.append(f"{done.completion_tokens} token{'s' * (done.completion_tokens != 1)}")
        told += {"length": ["cut off at the longest allowed"], "cancelled": ["stopped"]}.get(done.reason, [])
        return " · ".join(told)


@dataclass
class Exchange:
    """A question with the pictures that came with it, how it was asked, and an answer of each side.

    ``words``: the question as models read it, with the words for marks. Later questions are asked with these, since
    marks may come and go. ``votes``: how many were written down.
    """

    question: str
    pictures: list[AskedPicture]
    settings: dict[str, Any] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    words: str = ""
    votes: int = 0

    def answer(self, side: int) -> Answer | None:
        """The side's answer; of a question that one model alone was asked, that one's."""
        return self.answers[min(side, len(self.answers) - 1)] if self.answers else None

    @property
    def has_failed(self) -> bool:
        """Whether nothing came of it."""
        return not any(answer.text for answer in self.answers)

    def describe(self, side: int) -> dict[str, Any]:
        """For a vote: everything but the pictures."""
        answer = self.answer(side)
        assert answer, "what is voted on was answered"
        done = answer.finished
        timing = {"seconds": done.seconds, "waited": done.waited, "first_token": done.first_token} if done else None
        return {
            "question": self.words or self.question,
            "pictures": [{"sha256": one.sha256, "regions": one.part.get("regions", [])} for one in self.pictures],
            "model": answer.model,
            "answer": answer.text,
            "error": answer.error or None,
            "finish_reason": done.reason if done else None,
            "timing": timing,
            "tokens": done.completion_tokens if done else None,
        }


@dataclass
class Talk:
    """A conversation, and the answers that are being written."""

    exchanges: list[Exchange] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)
    is_busy: bool = False
    is_stopped: bool = False

    def ask(self, question: str, pictures: Sequence[AskedPicture]) -> bool:
        """Add a question about the pictures that are shown; returns whether it begins a new conversation.

        A picture that was not there before comes with this question. One that has other marks than before has them
        from its own question on. If one is gone, the answers so far are about something else: the conversation begins
        anew. A last question that nothing came of is forgotten.
        """
        if self.exchanges and self.exchanges[-1].has_failed:
            self.exchanges.pop()
        begins = self._update(pictures)
        if begins:
            self.exchanges.clear()
        known = {picture.file for exchange in self.exchanges for picture in exchange.pictures}
        self.exchanges.append(Exchange(question, [picture for picture in pictures if picture.file not in known]))
        return begins

    def _update(self, pictures: Sequence[AskedPicture]) -> bool:
        """Put pictures in the place of what they were before; returns whether one is gone."""
        now = {picture.file: picture for picture in pictures}
        known = [picture.file for exchange in self.exchanges for picture in exchange.pictures]
        if any(file not in now for file in known):
            return True
        for exchange in self.exchanges:
            exchange.pictures = [now[picture.file] for picture in exchange.pictures]
        return False

    def take_back(self, number: int = -1) -> str:
        """Forget a question and everything after it; returns the question."""
        question = self.exchanges[number].question
        del self.exchanges[number:]
        return question

    def stop(self) -> None:
        """Give up the answers that are being written; what is written stays."""
        self.is_stopped = True
        for ticket in self.tickets:
            ticket.cancel()

    def messages(self, side: int, system: str = "") -> list[dict[str, Any]]:
        """The conversation with a side up to its last question, as messages of ``/v1/chat/completions``.

        A question that the side did not answer is left out; its pictures come with the next one.
        """
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system.strip() else []
        pictures: list[dict[str, Any]] = []
        for exchange in self.exchanges:
            pictures += [picture.part for picture in exchange.pictures]
            is_last = exchange is self.exchanges[-1]
            answer = None if is_last else exchange.answer(side)
            if not is_last and not (answer and answer.text):
                continue
            words = {"type": "text", "text": exchange.question if is_last else exchange.words or exchange.question}
            messages.append({"role": "user", "content": [*pictures, words]})
            pictures = []
            if answer:
                messages.append({"role": "assistant", "content": answer.text})
        return messages
