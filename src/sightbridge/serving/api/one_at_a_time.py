"""Work that a model does beside its answers, one piece after another: scores and features."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

from sightbridge.serving.api.api_error import ApiError

Result = TypeVar("Result")


class OneAtATime:
    """A thread for long work, and a bounded queue in front of it."""

    def __init__(self, name: str, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.outstanding = 0
        self._pool = ThreadPoolExecutor(1, f"sightbridge-work-{name}")

    async def run(self, work: Callable[[Event], Result], seconds: float) -> Result:
        """Do ``work`` in its turn.

        ``work`` looks at its argument now and then, and ends early when that is set: nobody waits for it any longer.

        Raises:
            ApiError: 429 if too many wait, 504 if it is not done within ``seconds``.
        """
        if self.outstanding > self.max_waiting:
            raise ApiError(
                429, f"{self.outstanding} requests of this kind wait already.", code="queue_full", retry_after=5
            )
        stop = Event()
        self.outstanding += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, work, stop)
        future.add_done_callback(self._one_less)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(future)
        except TimeoutError:
            raise ApiError(504, f"Not done within {seconds:g} s. Ask for less at a time.") from None
        finally:
            stop.set()

    def close(self) -> None:
        """End the thread once it is idle."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _one_less(self, future: asyncio.Future) -> None:
        self.outstanding -= 1
        if not future.cancelled():
            future.exception()  # looked at: nobody may be left to do so
