"""The counters of the HTTP process, as Prometheus text at /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

NO_KEY = "none"
"""The label of clients without a key."""
_MOST_CLIENTS = 1000
"""Keys that have series of their own; those of the others are counted as one."""


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
        self._client_requests = Counter(
            "client_requests", "Requests answered, by key.", ("client",), **kept
        )
        self._client_refused = Counter(
            "client_refused", "Requests answered with an error, by key.", ("client",), **kept
        )
        self._client_tokens = Counter(
            "client_tokens", "Tokens of inputs answered, by key.", ("client",), **kept
        )
        self.key_names: Callable[[], Sequence[str]] = tuple
        """Returns the names of the keys; who checks them sets it."""
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

    def start(self, models: Iterable[str]) -> None:
        """Begin the series of models and clients at 0, so that a rate knows their first event."""
        for model in models:
            self.record_documents(model, 0, 0, 0)
        for name in (*self.key_names(), NO_KEY):
            label = self.client_label(name)
            self._client_requests.labels(label)
            self._client_refused.labels(label)
            self._client_tokens.labels(label)

    def client_label(self, client: str | None) -> str:
        """Return the label of a client: the name of its key. All others are one."""
        if client is None or client not in self.key_names()[:_MOST_CLIENTS]:
            return NO_KEY
        return client

    def record_client(self, client: str | None, status: int, tokens: int) -> None:
        """Count a response for who has asked.

        Args:
            client: the name of its key, or anything else.
            status: of the response.
            tokens: of its inputs.
        """
        label = self.client_label(client)
        self._client_requests.labels(label).inc()
        self._client_tokens.labels(label).inc(tokens)
        if status >= 400:
            self._client_refused.labels(label).inc()

    def record_documents(self, model: str, documents: int, tokens: int, truncated: int) -> None:
        """Count the inputs that a model has answered."""
        self._documents.labels(model).inc(documents)
        self._tokens.labels(model).inc(tokens)
        self._truncated.labels(model).inc(truncated)

    def text(self) -> bytes:
        """Return all counters as text."""
        return generate_latest(self._registry)
