"""OpenTelemetry traces of requests, received by a collector in this process."""

from __future__ import annotations

import gzip
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from online_service import Held, all_models, post, serving, until

from pipelines.serve.http.tracing import start_traces

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The spans that a collector has received; the standard variables name it."""
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    received: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            assert self.path == "/v1/traces"
            for of_resource in trace_service.ExportTraceServiceRequest.FromString(
                body
            ).resource_spans:
                (name,) = [
                    a.value.string_value
                    for a in of_resource.resource.attributes
                    if a.key == "service.name"
                ]
                received.extend(
                    (name, span) for scope in of_resource.scope_spans for span in scope.spans
                )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield received
    server.shutdown()


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_request_is_a_span_with_its_parts(spans: list[Any]) -> None:
    with serving(all_models()) as url:
        post(
            "/models/intent",
            {"inputs": ["my parcel is late", "hello"]},
            url,
            **HEADER,
            **{"x-request-id": "r1"},
        )
        until(lambda: len(spans) == 7)
    assert {name for name, _ in spans} == {"modernbert-ray"}
    (whole,) = [span for _, span in spans if span.kind == 2]
    parts = sorted(
        (span for _, span in spans if span.kind != 2), key=lambda span: span.start_time_unix_nano
    )
    assert (whole.name, whole.trace_id.hex(), whole.parent_span_id.hex()) == (
        "POST /models/intent",
        TRACE,
        PARENT,
    )
    tokens = attributes(whole).pop("modernbert.tokens")
    assert attributes(whole) == {
        "http.request.method": "POST",
        "http.route": "/models/intent",
        "http.response.status_code": 200,
        "modernbert.request_id": "r1",
        "modernbert.model": "intent",
        "modernbert.documents": 2,
        "modernbert.tokens": tokens,
    }
    assert tokens > 4
    names = ["send", "tokenise", "queue", "forward", "return", "serialise"]
    assert [part.name for part in parts] == names
    assert {(part.trace_id, part.parent_span_id) for part in parts} == {
        (whole.trace_id, whole.span_id)
    }
    times = [
        time for part in parts for time in (part.start_time_unix_nano, part.end_time_unix_nano)
    ]
    assert times[:10] == sorted(times[:10])
    assert whole.start_time_unix_nano <= times[0]
    assert times[-1] == whole.end_time_unix_nano


def test_errors_and_requests_without_a_parent(spans: list[Any]) -> None:
    held = Held()
    with serving(held, timeout_s=0.2) as url:
        assert post("/models/intent", {"inputs": "a"}, url).status_code == 504
        assert (
            post("/models/intent", {"inputs": ""}, url, traceparent="nonsense").status_code == 422
        )
        assert post("/nothing", {}, url).status_code == 404
        until(lambda: len(spans) == 3)
    seen = {
        span.name: (attributes(span)["http.response.status_code"], span.status.code)
        for _, span in spans
    }
    assert seen["POST none"] == (404, 0)
    statuses = {
        attributes(span)["http.response.status_code"]: span.status.code for _, span in spans
    }
    assert statuses == {504: 2, 422: 0, 404: 0}  # 2: error
    assert {span.parent_span_id for _, span in spans} == {b""}
    assert len({span.trace_id for _, span in spans}) == 3


def test_a_client_that_does_not_sample_is_not_traced(spans: list[Any]) -> None:
    with serving(all_models()) as url:
        post("/models/intent", {"inputs": "a"}, url, traceparent=f"00-{TRACE}-{PARENT}-00")
        post("/models/intent", {"inputs": "a"}, url, traceparent=f"00-{TRACE}-{PARENT}-01")
        until(lambda: len(spans) == 7)
    assert len(spans) == 7


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("variables", "warning"),
    [
        ({}, ""),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, ""),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, ""),
        (
            ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "the OTLP protocol grpc is not supported",
        ),
    ],
)
def test_when_there_are_no_traces(
    variables: dict[str, str],
    warning: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert start_traces() is None
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.text)


def test_without_the_package_there_are_no_traces(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert start_traces() is None
    assert "pip install 'modernbert-ray[otel]' brings the packages" in caplog.text
