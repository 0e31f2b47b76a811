"""What is asked of an engine, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sightbridge.config.generation import GenerationSettings
from sightbridge.data.record import Record
from sightbridge.images.load import ImageSource
from sightbridge.text.turns import Turn
from sightbridge.visual_prompts import Mark

Reason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Request:
    """One answer that is wanted.

    Attributes:
        turns: a conversation with an ``<image>`` marker for every picture; the last turn is the assistant's, still
            open (``text=None``).
        images: the pictures, in the order of their markers.
        marks: drawn on the pictures; each says on which (``mark.region.image``).
        settings: how to answer. Several answers are several requests. A beam search is answered by itself, while the
            others go on.
        logprobs: how many of the likeliest tokens are told beside every token that is written, with their logarithms
            of probability; ``None`` tells nothing, 0 those of the written tokens alone. Not with a beam search.
        is_written: the first turn is the whole prompt, with all that a template puts around turns; nothing is added.
            Its answer is at most as long as there is room behind it, if that is less than ``settings`` say.
        id: for messages and logs.
    """

    turns: tuple[Turn, ...]
    images: tuple[ImageSource, ...] = ()
    marks: tuple[Mark, ...] = ()
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    logprobs: int | None = None
    is_written: bool = False
    id: str = ""

    @property
    def record(self) -> Record:
        """The request as a record. All have one id: what is drawn at random about marks depends on it."""
        return Record("request", self.images, self.turns, marks=self.marks)


@dataclass(frozen=True)
class TokenLogprob:
    """A token, and the logarithm of the probability that the model gave it, before temperature and the like."""

    token_id: int
    text: str
    logprob: float
    alternatives: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of an answer that nothing which follows can change, and the tokens written since the last one.

    The texts of all pieces joined are the answer. The tokens leave out the one that ended it; what a stop text cuts
    off is among them.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """How an answer ended: at an end that the model wrote or a stop text, at its greatest length, or cancelled.

    ``completion_tokens`` counts all written tokens, that of the end too. Seconds count from the submission:
    ``seconds`` to the end, ``waited`` to the beginning of work on it, ``first_token`` to its first token (``None`` if
    there was none).
    """

    reason: Reason
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    waited: float = 0.0
    first_token: float | None = None
