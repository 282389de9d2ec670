"""The counters of the HTTP process, as Prometheus text at /metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class _Place(TypedDict):
    registry: CollectorRegistry
    namespace: str


class HttpMetrics:
    """The counters of an application, that is of one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        kept: _Place = {"registry": self._registry, "namespace": "modernbert_http"}
        self._requests = Counter("requests", "Requests answered.", ("route", "status"), **kept)
        self._seconds = Histogram(
            "request_seconds",
            "From a request's head to its answer.",
            ("route",),
            buckets=_SECONDS,
            **kept,
        )
        self._documents = Counter("documents", "Inputs answered.", ("model",), **kept)
        self._tokens = Counter("tokens", "Tokens of inputs answered.", ("model",), **kept)
        self._truncated = Counter("truncated", "Inputs that were cut off.", ("model",), **kept)
        self.documents_in_flight: Callable[[], int] = int
        """Returns the inputs of requests under way; who counts them sets it."""
        self.bytes_in_bodies: Callable[[], int] = int
        """Returns the bytes in bodies under way; who counts them sets it."""
        in_flight = Gauge("documents_in_flight", "Inputs of requests under way.", **kept)
        in_flight.set_function(lambda: self.documents_in_flight())
        body_bytes = Gauge("body_bytes", "Bytes in the bodies of requests under way.", **kept)
        body_bytes.set_function(lambda: self.bytes_in_bodies())

    def record_request(self, route: str, status: int, seconds: float) -> None:
        """Count a response."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def record_documents(self, model: str, documents: int, tokens: int, truncated: int) -> None:
        """Count the inputs that a model has answered."""
        self._documents.labels(model).inc(documents)
        self._tokens.labels(model).inc(tokens)
        self._truncated.labels(model).inc(truncated)

    def text(self) -> bytes:
        """Return all counters as text."""
        return generate_latest(self._registry)
