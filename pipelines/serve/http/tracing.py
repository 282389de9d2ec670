"""OpenTelemetry traces of requests: a span for each, with its parts below it. The standard OTEL_*
variables decide.

Times are collected while a request is answered, and become spans when it is over, so that without
traces none of this costs anything.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from pipelines.serve.protocol import PredictResponse

logger = logging.getLogger(__name__)
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


@dataclass
class Trace:
    """What is known of a request that is being answered; times are in seconds since 1970."""

    attributes: dict[str, str | int] = field(default_factory=dict)
    parts: list[tuple[str, float, float | None]] = field(default_factory=list)
    """The name, start and end of each part; without an end: the end of the request."""

    def add_response(self, model: str, response: PredictResponse, sent: float) -> None:
        """Add what a model has just answered; its parts follow each other.

        `sent`: when it was asked. The clock of its machine may differ from that of this one.
        """
        received = time.time()
        self.attributes |= {
            "modernbert.model": model,
            "modernbert.documents": len(response.n_tokens),
            "modernbert.tokens": sum(response.n_tokens),
        }
        durations = {
            "tokenise": response.tokenise_s,
            "queue": response.queue_s,
            "forward": response.forward_s,
        }
        start = max(sent, response.started)
        self.parts.append(("send", sent, start))
        for name, seconds in durations.items():
            self.parts.append((name, start, start + seconds))
            start += seconds
        self.parts.append(("return", start, max(start, received)))


TRACE: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""The trace of the request that is being answered; None where there are no traces."""
Export = Callable[[Trace, Mapping[str, str], str, str, int, float, float], None]
"""Makes the spans of a request: (trace, headers, method, route, status, start, end)."""


def start_traces() -> Export | None:
    """Return what exports the spans of requests.

    None where the variables OTEL_* ask for no traces, or what they ask for is not possible, which
    is logged.
    """
    if not _is_wanted():
        return None
    named = (os.environ.get(variable) for variable in _PROTOCOLS)
    protocol = next(filter(None, named), _PROTOCOL)
    if protocol != _PROTOCOL:
        message = "there are no traces: the OTLP protocol %s is not supported, only %s"
        logger.warning(message, protocol, _PROTOCOL)
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.propagate import extract
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
    except ImportError as error:
        message = "there are no traces: %s; pip install 'modernbert-ray[otel]' brings the packages"
        logger.warning(message, error)
        return None
    resource = Resource({"service.name": "modernbert-ray"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("pipelines.serve")

    def export(
        trace: Trace,
        headers: Mapping[str, str],
        method: str,
        route: str,
        status: int,
        start: float,
        end: float,
    ) -> None:
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
        }
        span = tracer.start_span(
            f"{method} {route}",
            context=extract(headers),  # the client's own span
            kind=SpanKind.SERVER,
            attributes=attributes | trace.attributes,
            start_time=_nanoseconds(start),
        )
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        below = set_span_in_context(span)
        for name, started, ended in trace.parts:
            part = tracer.start_span(name, context=below, start_time=_nanoseconds(started))
            part.end(_nanoseconds(end if ended is None else ended))
        span.end(_nanoseconds(end))

    return export


def _is_wanted() -> bool:
    """Tell whether the variables of OpenTelemetry ask for traces."""
    has_endpoint = any(os.environ.get(variable) for variable in _ENDPOINTS)
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return has_endpoint and exporter == "otlp" and not is_disabled


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
