"""Numbers about a server for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

SECONDS = (0.005, 0.02, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

EngineStats = Callable[[], Mapping[str, Mapping[str, float]]]
"""Numbers of every engine, by the model's name."""


class Metrics:
    """All numbers of one server.

    ``sightbridge_requests_total`` {path, method, status}, ``sightbridge_request_seconds`` {path},
    ``sightbridge_tokens_total`` {model, kind: prompt or completion}, ``sightbridge_requests_in_flight``, and a gauge
    ``sightbridge_engine_NAME`` {model} for each of the engine's numbers.
    """

    def __init__(self, engine_stats: EngineStats) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "sightbridge_requests", "Requests that were answered", ["path", "method", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "sightbridge_request_seconds",
            "From the first byte of a request to the last of its answer",
            ["path"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.tokens = Counter(
            "sightbridge_tokens", "Tokens of prompts and answers", ["model", "kind"], registry=self._registry
        )
        self.in_flight = Gauge(
            "sightbridge_requests_in_flight", "Requests that are being handled", registry=self._registry
        )
        self._registry.register(_EngineNumbers(engine_stats))  # type: ignore[arg-type]

    def count_tokens(self, model: str, prompt: int, completion: int) -> None:
        """Count the tokens of a request."""
        self.tokens.labels(model, "prompt").inc(prompt)
        self.tokens.labels(model, "completion").inc(completion)

    def write(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineNumbers:
    """Asks the engines when Prometheus asks us."""

    def __init__(self, engine_stats: EngineStats) -> None:
        self._stats = engine_stats

    def collect(self) -> Iterable[GaugeMetricFamily]:
        families: dict[str, GaugeMetricFamily] = {}
        for model, numbers in self._stats().items():
            for name, value in numbers.items():
                family = families.setdefault(
                    name, GaugeMetricFamily(f"sightbridge_engine_{name}", f"The engine's '{name}'", labels=["model"])
                )
                family.add_metric([model], value)
        return families.values()
