"""One model that answers many requests at once: a queue, a batch that rows join and leave between steps, one thread."""

from __future__ import annotations

import atexit
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition, Thread
from typing import TypeVar

import torch
from torch import Tensor

from sightbridge.data.processor import Processor
from sightbridge.errors import SightbridgeError
from sightbridge.generation.answer import generate_ids
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.serving.engines.feature_cache import FeatureCache
from sightbridge.serving.engines.prompt import Prompt, PromptMaker
from sightbridge.serving.engines.request import Piece, Request
from sightbridge.serving.engines.slots import Prefilled, make_rows, prefill
from sightbridge.serving.engines.ticket import Ticket
from sightbridge.serving.engines.writing import Writing, choose, finished

PREFILL_POSITIONS = 1024
"""Newcomers join between two steps until their prompts are so long together, but always one, so that running answers
go on and whoever waits joins after at most as many steps as there are requests in front, once places are free."""
REMEMBERED = 64
"""Answers whose seconds tell how fast the queue moves."""

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class QueueFull(SightbridgeError):  # noqa: N818 - like queue.Full
    """As many requests wait as may; ``retry_after`` estimates after how many seconds they are worked off."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineClosedError(SightbridgeError):
    """The engine takes no more requests."""


class StepError(SightbridgeError):
    """The model failed while it answered; no mistake of the request, which may be sent again."""


class UpstreamError(SightbridgeError):
    """A server that answers for us did not; ``status`` is what a client is told, ``retry_after`` seconds to wait."""

    def __init__(self, message: str, status: int = 502, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Engine:
    """Answers requests to one model; one thread decodes, and no other may use the model meanwhile.

    A request's answer is what ``generation.answer`` gives, whatever else runs. A beam search is answered beside the
    running batch, which goes on after each of its steps; there is one at a time.

    Args:
        model: as ``sightbridge.load`` returns it; it is put into evaluation mode.
        processor: that came with it.
        name: for messages and the thread.
        max_batch: answers that are written at the same time.
        max_queue: requests that may wait.
        feature_cache_bytes: bound on the features of pictures that are kept for further questions.
        max_tokens: bound on prompt and answer together, of an encoder-decoder on each; by default what it takes.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        processor: Processor,
        *,
        name: str,
        max_batch: int = 16,
        max_queue: int = 64,
        feature_cache_bytes: int = 2**28,
        max_tokens: int | None = None,
    ) -> None:
        self.model, self.processor, self.name = model.eval(), processor, name
        self.max_batch, self.max_queue = max_batch, max_queue
        self._cache = FeatureCache(feature_cache_bytes)
        self._prompts = PromptMaker(model, processor, self._cache, max_tokens)
        self._waiting: deque[Prompt] = deque()
        self._beside: deque[Callable[[], None]] = deque()
        self._running: list[Writing] = []
        self._searches = 0
        self._rows = make_rows(model.language_model)
        self._changed = Condition()
        self._closed = self._abandoned = False
        self._counts: Counter[str] = Counter()
        self._taken: deque[float] = deque(maxlen=REMEMBERED)
        self._thread = Thread(target=self._run, name=f"sightbridge-engine-{name}", daemon=True)
        self._thread.start()
        atexit.register(self.close, drain=False)  # a thread inside torch while the interpreter ends would abort it

    @property
    def max_tokens(self) -> int:
        """Bound on prompt and answer together, of an encoder-decoder on each."""
        return self._prompts.max_tokens

    def submit(self, request: Request) -> Ticket:
        """Check a request, open its pictures in the calling thread, and queue it.

        Raises:
            SettingsError, DataError, ImageError: the request cannot be answered; see ``PromptMaker.make``.
            QueueFull: too many wait.
            EngineClosedError: after ``close``.
        """
        self._check_open()  # before the work of opening pictures, and again after it
        prompt = self._prompts.make(request)
        with self._changed:
            self._check_open()
            self._waiting.append(prompt)
            self._changed.notify_all()
        return prompt.ticket

    def run_beside(self, work: Callable[[], Result]) -> Result:
        """Do something else with the model, in the decoding thread between two steps: answers wait meanwhile.

        Blocks until it is done; raises what ``work`` raises, and ``EngineClosedError`` after ``close``.
        """
        done: Future[Result] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

        with self._changed:
            if self._closed:
                raise EngineClosedError(f"'{self.name}' is shutting down and takes no more requests.")
            self._beside.append(run)
            self._changed.notify_all()
        return done.result()

    def stats(self) -> dict[str, float]:
        """Numbers now (waiting, running, features' bytes) and since the start (everything else)."""
        names = ("steps", "tokens", "prompt_tokens", "finished", "cancelled", "failed", "refused")
        return {
            "waiting": len(self._waiting),
            "running": len(self._running) + self._searches,
            **{name: self._counts[name] for name in names},
            "feature_hits": self._prompts.hits,
            "feature_misses": self._prompts.misses,
            "feature_bytes": self._cache.nbytes,
        }

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests and end the thread.

        With ``drain``, what was accepted is answered first, for at most ``timeout`` seconds; the rest is cancelled.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if drain:
            self._thread.join(timeout)
        self._abandoned = True
        self._thread.join()
        atexit.unregister(self.close)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError(f"'{self.name}' is shutting down and takes no more requests.")
        if len(self._waiting) >= self.max_queue:
            self._counts["refused"] += 1
            retry_after = self._estimate_wait()
            raise QueueFull(
                f"{self.max_queue} requests to '{self.name}' wait already; try again in {retry_after:.0f} s.",
                retry_after,
            )

    def _estimate_wait(self) -> float:
        """Seconds until those who wait now are answered, if it goes as it went of late; 1 to 60."""
        taken = list(self._taken)
        per_answer = sum(taken) / max(len(taken), 1) / self.max_batch
        return min(max(per_answer * len(self._waiting), 1.0), 60.0)

    # Everything below runs in the engine's thread.

    @torch.no_grad()
    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._beside or self._closed)
                if not (self._waiting or self._running or self._beside):
                    return
            self._advance()
            if self._beside:
                self._beside.popleft()()
            if prompt := self._next(alone=True):
                self._answer_alone(prompt)

    def _advance(self) -> None:
        """One step of the running batch; an error in it ends the running answers and nothing else."""
        try:
            self._drop_cancelled()
            self._admit()
            self._step()
        except Exception as error:
            _log.exception("a step of '%s' failed", self.name)
            unfinished = [row for row in self._running if not row.is_over]
            told = f"the model failed ({type(error).__name__}: {error}), which ended {len(unfinished)} answer(s)."
            for row in unfinished:
                self._end(row, StepError(told))
            self._running, self._rows = [], make_rows(self.model.language_model)

    def _drop_cancelled(self) -> None:
        with self._changed:
            given_up = [prompt for prompt in self._waiting if self._is_cancelled(prompt)]
            for prompt in given_up:
                self._waiting.remove(prompt)
        for prompt in given_up:
            self._counts["cancelled"] += 1
            prompt.ticket.tell(finished(prompt, "cancelled"))
        for row in list(self._running):
            if self._is_cancelled(row.prompt):
                self._counts["cancelled"] += 1
                row.finish("cancelled")
                self._leave(row)

    def _is_cancelled(self, prompt: Prompt) -> bool:
        return self._abandoned or prompt.ticket.is_cancelled

    def _admit(self) -> None:
        """Let newcomers join, each after a pass of its own through its prompt."""
        budget = PREFILL_POSITIONS
        while len(self._running) < self.max_batch and budget > 0 and (prompt := self._next(alone=False)):
            budget -= prompt.length
            if begun := self._begin(prompt):
                row, prefilled = begun
                self._running.append(row)
                self._rows.add(prefilled)

    def _next(self, *, alone: bool) -> Prompt | None:
        """Take the first who waits for a place in the batch, or for a search beside it."""
        with self._changed:
            prompt = next((prompt for prompt in self._waiting if prompt.is_alone == alone), None)
            if prompt:
                self._waiting.remove(prompt)
                prompt.began = time.monotonic()
            return prompt

    def _begin(self, prompt: Prompt) -> tuple[Writing, Prefilled] | None:
        """Read a prompt and write the first token; ``None`` if that was all. What goes wrong ends this answer alone."""
        language_model = self.model.language_model
        start = [language_model.config.decoder_start_token_id] if language_model.is_encoder_decoder else []
        try:
            row = Writing(prompt, self._prompts.processor, language_model.model.device, start)
            prefilled = prefill(language_model, self.model.embed(self._prompts.batch(prompt)))
            self._counts["prompt_tokens"] += prompt.length
            self._write([row], prefilled.logits[None])
        except Exception as error:
            self._counts["failed"] += 1
            prompt.ticket.tell(self._explain(error))
            return None
        return None if row.is_over else (row, prefilled)

    def _step(self) -> None:
        if not self._running:
            return
        logits = self._rows.step([row.ids[-1] for row in self._running])
        self._counts["steps"] += 1
        self._write(self._running, logits)
        for row in [row for row in self._running if row.is_over]:
            self._leave(row)

    def _write(self, rows: list[Writing], logits: Tensor) -> None:
        """Add to every row its next token by logits (B, V)."""
        for index, (row, token) in enumerate(zip(rows, choose(rows, logits), strict=True)):
            if isinstance(token, SightbridgeError):
                self._end(row, token)
                continue
            self._counts["tokens"] += 1
            if reason := row.add(token, logits[index]):
                self._counts["finished"] += 1
                self._taken.append(time.monotonic() - (row.prompt.began or 0.0))
                row.finish(reason)

    def _leave(self, row: Writing) -> None:
        """Free a row's place; as in the caches, the last row takes it."""
        index = self._running.index(row)
        self._rows.drop(index)
        self._running[index] = self._running[-1]
        self._running.pop()

    def _end(self, row: Writing, error: Exception) -> None:
        self._counts["failed"] += 1
        row.fail(error)

    def _explain(self, error: Exception) -> Exception:
        if isinstance(error, SightbridgeError):
            return error
        _log.error("a prompt to '%s' failed", self.name, exc_info=error)
        return StepError(f"the model failed on this request ({type(error).__name__}: {error}).")

    def _answer_alone(self, prompt: Prompt) -> None:
        """Answer by a beam search, a step of the running batch after each of its own."""
        ticket, settings, processor = prompt.ticket, prompt.request.settings, self._prompts.processor
        self._searches = 1

        def watch(ids: Tensor) -> bool:
            self._advance()
            return self._is_cancelled(prompt)

        try:
            ids = generate_ids(self.model, processor, self._prompts.batch(prompt), settings, watch)[0].tolist()
            text = processor.decode([ids], settings.stop)[0]
        except Exception as error:
            self._counts["failed"] += 1
            ticket.tell(self._explain(error))
            return
        finally:
            self._searches = 0
        self._counts["tokens"] += len(ids)
        if self._is_cancelled(prompt):
            self._counts["cancelled"] += 1
            ticket.tell(finished(prompt, "cancelled", len(ids)))
        else:
            self._counts["finished"] += 1
            ticket.tell(Piece(text, tuple(ids)))
            ticket.tell(finished(prompt, "length" if len(ids) >= settings.max_new_tokens else "stop", len(ids)))
