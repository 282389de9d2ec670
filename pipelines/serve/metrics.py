"""What models and the HTTP side report to Prometheus through Ray: counts and times, never a text.

Without Ray nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

# ray.util.metrics puts ray_ before each name.
from ray.util.metrics import Counter, Gauge, Histogram

from pipelines.serve.http.metrics import NO_KEY, HttpMetrics
from pipelines.serve.protocol import ErrorType, PredictResponse

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]
SHARES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


class Metrics:
    """The counters of a model."""

    def __init__(self, model: str):
        tags = {"model": model}
        self._requests = _counter("modernbert_requests", "Requests answered", tags)
        self._documents = _counter("modernbert_documents", "Documents answered", tags)
        self._failed = _counter("modernbert_documents_failed", "Documents without an answer", tags)
        self._truncated = _counter(
            "modernbert_documents_truncated", "Documents of which tokens were cut off", tags
        )
        self._refused = _counter(
            "modernbert_refused", "Requests refused as a whole, by reason", tags, "reason"
        )
        self._tokens = _counter("modernbert_tokens", "Tokens that the model ran", tags)
        self._tokenise = _histogram(
            "modernbert_tokenise_seconds", "Checking and tokenising a request", SECONDS, tags
        )
        self._queue = _histogram(
            "modernbert_queue_seconds", "From tokenised to the first packed batch", SECONDS, tags
        )
        self._forward = _histogram("modernbert_forward_seconds", "A packed batch", SECONDS, tags)
        self._fill = _histogram(
            "modernbert_batch_fill_ratio",
            "A packed batch's share of the token budget",
            SHARES,
            tags,
        )

        for counter in (
            self._requests,
            self._documents,
            self._failed,
            self._truncated,
            self._tokens,
        ):
            _begin(counter)
        for reason in get_args(ErrorType):
            _begin(self._refused, reason=reason)

    def record_response(self, answers: PredictResponse) -> None:
        """Count an answered request."""
        self._requests.inc()
        self._tokenise.observe(answers.tokenise_s)
        self._queue.observe(answers.queue_s)
        counts = {
            self._documents: len(answers.n_tokens) - len(answers.failed),
            self._failed: len(answers.failed),
            self._truncated: sum(answers.truncated),
        }
        for counter, count in counts.items():
            if count:
                counter.inc(count)

    def record_refusal(self, reason: ErrorType) -> None:
        """Count a request that is refused as a whole."""
        self._refused.inc(tags={"reason": reason})

    def record_batch(self, tokens: int, fill: float, seconds: float) -> None:
        """Count a packed batch."""
        self._tokens.inc(tokens)
        self._forward.observe(seconds)
        self._fill.observe(fill)


class RayHttpMetrics(HttpMetrics):
    """The counters of a copy of the HTTP side, which Ray's endpoints have of all copies."""

    def __init__(self) -> None:
        super().__init__()
        self._ray_requests = _counter(
            "modernbert_http_requests", "Requests answered", {}, "route", "status"
        )
        self._ray_seconds = Histogram(
            "modernbert_http_request_seconds",
            "From a request's head to its answer",
            boundaries=SECONDS,
            tag_keys=("route",),
        )
        self._ray_client_requests = _counter(
            "modernbert_http_client_requests", "Requests answered, by key", {}, "client"
        )
        self._ray_client_refused = _counter(
            "modernbert_http_client_refused",
            "Requests answered with an error, by key",
            {},
            "client",
        )
        self._ray_client_tokens = _counter(
            "modernbert_http_client_tokens", "Tokens of inputs answered, by key", {}, "client"
        )
        self._ray_in_flight = Gauge(
            "modernbert_http_documents_in_flight", "Inputs of requests under way"
        )
        self._ray_body_bytes = Gauge(
            "modernbert_http_body_bytes", "Bytes in the bodies of requests under way"
        )

    def record_request(self, route: str, status: int, seconds: float) -> None:
        super().record_request(route, status, seconds)
        self._ray_requests.inc(tags={"route": route, "status": str(status)})
        self._ray_seconds.observe(seconds, tags={"route": route})
        self._ray_in_flight.set(self.documents_in_flight())
        self._ray_body_bytes.set(self.bytes_in_bodies())

    def start(self, models: Iterable[str]) -> None:
        super().start(models)
        for name in (*self.key_names(), NO_KEY):
            label = self.client_label(name)
            _begin(self._ray_client_requests, client=label)
            _begin(self._ray_client_refused, client=label)
            _begin(self._ray_client_tokens, client=label)

    def record_client(self, client: str | None, status: int, tokens: int) -> None:
        super().record_client(client, status, tokens)
        tags = {"client": self.client_label(client)}
        self._ray_client_requests.inc(tags=tags)
        if tokens:
            self._ray_client_tokens.inc(tokens, tags=tags)
        if status >= 400:
            self._ray_client_refused.inc(tags=tags)


def _begin(counter: Counter, **tags: str) -> None:
    """Begin a series at 0, so that a rate knows its first event; Ray's `inc` takes no 0."""
    counter._record(0, tags=tags)


def _counter(name: str, description: str, tags: dict[str, str], *more: str) -> Counter:
    counter = Counter(name, description, tag_keys=(*tags, *more))
    counter.set_default_tags(tags)
    return counter


def _histogram(
    name: str, description: str, boundaries: list[float], tags: dict[str, str]
) -> Histogram:
    histogram = Histogram(name, description, boundaries=boundaries, tag_keys=tuple(tags))
    histogram.set_default_tags(tags)
    return histogram
