"""What everything that answers for a model has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from sightbridge.serving.engines.request import Request
from sightbridge.serving.engines.ticket import Ticket

Result = TypeVar("Result")


class AnyEngine(Protocol):
    """An ``Engine``, or one that has its answers written elsewhere."""

    @property
    def max_tokens(self) -> int:
        """Bound on prompt and answer together, of an encoder-decoder on each."""
        ...

    def submit(self, request: Request) -> Ticket:
        """Check and queue a request."""
        ...

    def run_beside(self, work: Callable[[], Result]) -> Result:
        """Do something else with the model."""
        ...

    def stats(self) -> dict[str, float]:
        """Numbers for ``/metrics``."""
        ...

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests, and end."""
        ...
