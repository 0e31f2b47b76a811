"""The claim to an answer: read it as it is written, from a thread or an event loop, or give it up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from threading import Condition, Event

from sightbridge.serving.engines.request import Finished, Piece, Request

Told = Piece | Finished | Exception


class Ticket:
    """What ``Engine.submit`` returns. Any number of readers may read it; each gets everything from the beginning.

    Reading no further does not end an answer; ``cancel`` does.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self._told: list[Told] = []
        self._changed = Condition()
        self._listeners: set[Callable[[], object]] = set()
        self._cancelled = Event()
        self._at_cancel: list[Callable[[], object]] = []

    def events(self, timeout: float | None = None) -> Iterator[Piece | Finished]:
        """Pieces as they are written, then ``Finished``; blocks, raises the error of a request that failed.

        ``timeout``: seconds to wait for each; raises ``TimeoutError``.
        """
        for position in count():
            with self._changed:
                if not self._changed.wait_for(lambda there=position: len(self._told) > there, timeout):
                    raise TimeoutError(f"no event of the request within {timeout} s")
            yield _raise_error(event := self._told[position])
            if isinstance(event, Finished):
                return

    async def aevents(self) -> AsyncIterator[Piece | Finished]:
        """The same for an event loop, which it does not block."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(arrived.set)

        with self._changed:
            self._listeners.add(wake)
        try:
            position = 0
            while True:
                arrived.clear()
                while position < len(self._told):
                    yield _raise_error(event := self._told[position])
                    position += 1
                    if isinstance(event, Finished):
                        return
                await arrived.wait()
        finally:
            with self._changed:
                self._listeners.discard(wake)

    def result(self, timeout: float | None = None) -> tuple[str, Finished]:
        """Wait for the whole answer. Raises what ``events`` raises; ``timeout`` is between two pieces."""
        *pieces, finished = self.events(timeout)
        assert isinstance(finished, Finished), "nothing follows it"
        return "".join(piece.text for piece in pieces if isinstance(piece, Piece)), finished

    def cancel(self) -> None:
        """Give the answer up: its place is free before the next step, and ``Finished`` says "cancelled"."""
        with self._changed:
            self._cancelled.set()
            calls, self._at_cancel = self._at_cancel, []
        for call in calls:
            call()

    def on_cancel(self, call: Callable[[], object]) -> None:
        """For an engine that does not look in between: ``call`` when the answer is given up, or now if it was."""
        with self._changed:
            if not self._cancelled.is_set():
                self._at_cancel.append(call)
                return
        call()

    @property
    def is_cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._cancelled.is_set()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return bool(self._told) and not isinstance(self._told[-1], Piece)

    def tell(self, event: Told) -> None:
        """For the engine: the next event, or the error that ends the request."""
        with self._changed:
            self._told.append(event)
            self._changed.notify_all()
            listeners = list(self._listeners)
        for wake in listeners:
            try:
                wake()
            except RuntimeError:  # the loop of a reader that is gone
                self._listeners.discard(wake)


def _raise_error(event: Told) -> Piece | Finished:
    if isinstance(event, Exception):
        raise event
    return event
