"""What the parts of a server share."""

from __future__ import annotations

from dataclasses import dataclass

from sightbridge.config.serving import ServingSettings
from sightbridge.serving.files import Files
from sightbridge.serving.metrics import Metrics
from sightbridge.serving.pictures import Pictures
from sightbridge.serving.served import ServedModels


@dataclass
class State:
    """Models, settings, and what goes on just now.

    ``draining``: no new request is taken, those that are being answered are finished. ``in_flight`` counts these; the
    last one ended at ``last_end``, by the monotonic clock.
    """

    models: ServedModels
    settings: ServingSettings
    files: Files
    pictures: Pictures
    metrics: Metrics
    api_key: str | None = None
    draining: bool = False
    in_flight: int = 0
    last_end: float = 0.0
