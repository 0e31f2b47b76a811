"""One model that answers many requests."""

from __future__ import annotations

import time
from collections import Counter, deque
from threading import Condition, Thread
from typing import Any

from sightbridge.data.processor import Processor
from sightbridge.errors import SightbridgeError
from sightbridge.generation.answer import stream_batch
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.serving.request import Finished, Piece, Request
from sightbridge.serving.ticket import Ticket


class QueueFull(SightbridgeError):  # noqa: N818 - like queue.Full
    """As many requests wait as may; ``retry_after`` estimates after how many seconds there is room."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineClosedError(SightbridgeError):
    """The engine takes no more requests."""


class StepError(SightbridgeError):
    """The model failed while it answered; no mistake of the request, which may be sent again."""


class Engine:
    """One model, one thread that decodes."""

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
        self.model, self.processor, self.name = model, processor, name
        self.max_queue = max_queue
        self._waiting: deque[tuple[Ticket, Any, float]] = deque()
        self._changed = Condition()
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._thread = Thread(target=self._run, name=f"sightbridge-engine-{name}", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Ticket:
        """Check a request and queue it."""
        batch = self.processor([request.record], for_generation=True)
        with self._changed:
            if self._closed:
                raise EngineClosedError(f"the engine of '{self.name}' is closing and takes no more requests")
            if len(self._waiting) >= self.max_queue:
                raise QueueFull(f"{len(self._waiting)} requests wait already: send it again later", 1.0)
            ticket = Ticket(request)
            self._waiting.append((ticket, batch, time.monotonic()))
            self._changed.notify()
        return ticket

    def stats(self) -> dict[str, float]:
        """Numbers so far."""
        return {"waiting": len(self._waiting), "running": 0, **self._counts}

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests; with ``drain`` answer those that wait."""
        with self._changed:
            self._closed = True
            if not drain:
                for ticket, _, _ in self._waiting:
                    ticket.cancel()
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                ticket, batch, since = self._waiting.popleft()
            try:
                for text in stream_batch(self.model, self.processor, batch, ticket.request.settings):
                    ticket.tell(Piece(text))
                reason = "cancelled" if ticket.is_cancelled else "stop"
                ticket.tell(Finished(reason, batch.input_ids.shape[1], 0, time.monotonic() - since))
            except Exception as error:
                ticket.tell(error)
