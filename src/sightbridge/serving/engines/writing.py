"""One answer while it is written: its next token chosen by its own settings, its text given out as it settles."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from sightbridge.data.processor import Processor
from sightbridge.errors import SightbridgeError
from sightbridge.generation.answer import settled, stop_ids, without_open_bytes
from sightbridge.generation.generate import score_steps
from sightbridge.serving.engines.prompt import Prompt
from sightbridge.serving.engines.request import Finished, Piece, Reason, TokenLogprob


class Writing:
    """The tokens of one answer and what its readers have been told of them.

    The rules are those of ``generation.answer``: the same steps on the scores, the same ends, the same text.

    Attributes:
        prompt: what is answered.
        ids: written so far, that of an end too.
        eos_ids: tokens that end the answer.
        is_over: whether ``Finished`` has been told.
    """

    def __init__(self, prompt: Prompt, processor: Processor, device: torch.device, start: Sequence[int] = ()) -> None:
        """``start``: the decoder's start token, which a repetition penalty counts as written."""
        self.prompt = prompt
        self.ids: list[int] = []
        self.is_over = False
        settings = prompt.request.settings
        self._settings, self._processor, self._start = settings, processor, list(start)
        if settings.sample and settings.seed is None:  # torch's own generator starts alike in every process
            settings = settings.model_copy(update={"seed": secrets.randbits(62)})
        self._steps = score_steps(settings, device)
        self._stops = [*processor.stop_strings, *settings.stop]
        self.eos_ids = [*processor.eos_ids, *stop_ids(self._stops, processor.tokenizer)]
        self._text = ""
        self._pending: list[tuple[int, TokenLogprob | None]] = []
        self._first_token: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is the next one."""
        settings = self._settings
        is_held = len(self.ids) < settings.min_new_tokens
        return not (settings.sample or is_held or settings.repetition_penalty != 1)

    def choose(self, logits: Tensor) -> int:
        """The next token, by logits (V,). Raises ``DataError`` if they are not numbers."""
        scores = logits[None].clone()
        if len(self.ids) < self._settings.min_new_tokens:
            scores[:, self.eos_ids] = -torch.inf
        written = torch.tensor([[*self._start, *self.ids]], dtype=torch.long, device=logits.device)
        for step in self._steps:
            scores = step(written, scores)  # type: ignore[arg-type]
        return int(scores.argmax())

    def add(self, token: int, logits: Tensor) -> Reason | None:
        """Write a token; ``logits`` (V,) are what it was chosen by. Returns as ``write``."""
        return self.write(token, None if token in self.eos_ids else self._logprob(token, logits))

    def write(self, token: int, logprob: TokenLogprob | None) -> Reason | None:
        """Write a token of which the readers are to be told ``logprob``.

        Tells them what has settled, or returns why the answer ends here: ``finish`` it then.
        """
        self._first_token = self._first_token or time.monotonic()
        self.ids.append(token)
        if token in self.eos_ids:
            return "stop"
        self._pending.append((token, logprob))
        decode = self._processor.tokenizer.decode
        text = decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) if self._stops else ""
        if any(stop in text for stop in self._stops):
            return "stop"
        if len(self.ids) == self._settings.max_new_tokens:
            return "length"
        whole = without_open_bytes(self.ids, self._processor.tokenizer)
        self._tell(settled(self._processor.decode([whole], self._settings.stop)[0], self._stops))
        return None

    def finish(self, reason: Reason) -> None:
        """Tell the rest of the text and how the answer ended; cancelled, it ends where it was told to."""
        if reason != "cancelled":
            self._tell(self._processor.decode([self.ids], self._settings.stop)[0], is_last=True)
        self.is_over = True
        self.prompt.ticket.tell(finished(self.prompt, reason, len(self.ids), self._first_token))

    def fail(self, error: Exception) -> None:
        """Tell the readers the error that ends the answer."""
        self.is_over = True
        self.prompt.ticket.tell(error)

    def _tell(self, text: str, *, is_last: bool = False) -> None:
        """Tell what ``text``, all that has settled, adds to what was told."""
        piece = text[len(self._text) :]
        if not piece and not (is_last and self._pending):
            return
        tokens = tuple(token for token, _ in self._pending)
        logprobs = tuple(logprob for _, logprob in self._pending if logprob is not None)
        self._text += piece
        self._pending.clear()
        self.prompt.ticket.tell(Piece(piece, tokens, logprobs))

    def _logprob(self, token: int, logits: Tensor) -> TokenLogprob | None:
        """What the model gave the token and the likeliest ones, if the request wants it."""
        wanted = self.prompt.request.logprobs
        if wanted is None:
            return None
        logprobs = logits.log_softmax(dim=-1)
        values, ids = logprobs.topk(min(wanted, len(logits)))
        likeliest = tuple(
            TokenLogprob(other, self.read(other), value)
            for other, value in zip(ids.tolist(), values.tolist(), strict=True)
        )
        return TokenLogprob(token, self.read(token), logprobs[token].item(), likeliest)

    def read(self, token: int) -> str:
        """A token's own text."""
        return self._processor.tokenizer.decode([token], clean_up_tokenization_spaces=False)


def choose(rows: Sequence[Writing], logits: Tensor) -> list[int | SightbridgeError]:
    """The next token of every row by logits (B, V), or why it can have none."""
    likeliest = logits.argmax(dim=-1).tolist()  # one trip to the device for all
    is_broken = logits.isnan().any(dim=-1).tolist()
    chosen: list[int | SightbridgeError] = []
    for index, row in enumerate(rows):
        try:
            chosen.append(likeliest[index] if row.is_plain and not is_broken[index] else row.choose(logits[index]))
        except SightbridgeError as error:
            chosen.append(error)
    return chosen


def finished(prompt: Prompt, reason: Reason, tokens: int = 0, first_token: float | None = None) -> Finished:
    """How the answer to ``prompt`` ended; ``first_token``: when, on the monotonic clock."""
    now = time.monotonic()
    return Finished(
        reason,
        prompt.length,
        tokens,
        seconds=now - prompt.submitted,
        waited=(prompt.began or now) - prompt.submitted,
        first_token=None if first_token is None else first_token - prompt.submitted,
    )
