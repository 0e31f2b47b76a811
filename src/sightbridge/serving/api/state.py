"""What the parts of a server share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sightbridge.config.serving import ServingSettings
from sightbridge.serving.api.files import Files
from sightbridge.serving.api.metrics import Metrics
from sightbridge.serving.api.pictures import Pictures
from sightbridge.serving.api.served import ServedModels


@dataclass
class State:
    """Models, settings, and what goes on just now.

    ``speaks_llava``: the application has the routes of LLaVA's controller and worker. ``shows_page``: it has the web
    page; what people think of answers there is written to ``votes``.
    ``draining``: no new request is taken, those that are being answered are finished. ``in_flight`` counts these; the
    last one ended at ``last_end``, by the monotonic clock. ``ending`` closes what pages hold open.
    """

    models: ServedModels
    settings: ServingSettings
    files: Files
    pictures: Pictures
    metrics: Metrics
    api_key: str | None = None
    shows_page: bool = False
    speaks_llava: bool = False
    votes: Path | None = None
    draining: bool = False
    in_flight: int = 0
    last_end: float = 0.0
    ending: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Count what is done within as a request that is being handled: the server ends after it."""
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self.last_end = time.monotonic()
            self.metrics.in_flight.set(self.in_flight)
