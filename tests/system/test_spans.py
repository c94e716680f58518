"""Spans reach a collector as OTLP over HTTP says: those of sampled traces, and no others."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cases import Release, mixed_body, mixed_rows
from running import Running
from test_changes import wait_for

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

BODY = mixed_body(mixed_rows(1)[0])
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.requests: list[ExportTraceServiceRequest] = []

    def spans(self) -> list[tuple[str, Span]]:
        """(service, span)"""
        found = []
        for request in self.requests:
            for of in request.resource_spans:
                resource = {pair.key: pair.value.string_value for pair in of.resource.attributes}
                found += [(resource["service.name"], span) for scope in of.scope_spans for span in scope.spans]
        return found


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        assert self.headers["content-type"] == "application/x-protobuf"
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        self.server.requests.append(request)
        told = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join(10)


@pytest.mark.parametrize("knobs", [{}, {"http": "asgi"}, {"inline_budget_us": 0}], ids=["direct", "asgi", "lane"])
def test_sampled_traces_become_spans(
    release: Release,
    serve: Callable[..., Running],
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    knobs: dict[str, object],
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=scores")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    server = serve(release.store, **knobs)
    sampled = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=opaque"}
    server.ask("/predict", BODY, sampled | {"x-request-id": "one"})
    wait_for(lambda: len(collector.spans()) == 1, server)
    server.ask("/predict", b"{", sampled)
    server.ask("/v1/models", None, sampled)
    server.ask("/predict", BODY, {"traceparent": f"00-{TRACE}-{PARENT}-00"})
    server.ask("/predict", BODY, {"traceparent": f"00-{TRACE}-{'0' * 16}-01"})
    server.ask("/predict", BODY)
    server.ask("/healthz", None, sampled)
    assert server.stop() == 0  # what waited was sent
    spans = collector.spans()
    assert [(span.name, service) for service, span in spans] == [
        ("POST /predict", "scores"),
        ("POST /predict", "scores"),
        ("GET /v1/models", "scores"),
    ]
    assert {(span.trace_id.hex(), span.parent_span_id.hex()) for _, span in spans} == {(TRACE, PARENT)}
    assert len({span.span_id for _, span in spans}) == 3
    first = spans[0][1]
    assert (first.kind, first.trace_state) == (Span.SPAN_KIND_SERVER, "vendor=opaque")
    assert 0 < first.end_time_unix_nano - first.start_time_unix_nano < 10**10
    told = {pair.key: pair.value.string_value or pair.value.int_value for pair in first.attributes}
    assert told == {
        "http.request.method": "POST",
        "url.path": "/predict",
        "http.response.status_code": 200,
        "coppice.request_id": "one",
        "coppice.model_version": "1",
        "coppice.arm": "champion",
    }
    assert {span.status.code for _, span in spans} == {Status.STATUS_CODE_UNSET}


def test_a_collector_that_is_away_costs_no_answer(
    release: Release, serve: Callable[..., Running], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    server = serve(release.store)
    asked = [server.ask("/predict", BODY, {"traceparent": f"00-{TRACE}-{PARENT}-01"}) for _ in range(50)]
    assert {status for status, _, _ in asked} == {200}
    assert server.stop() == 0
    assert not collector.spans()
