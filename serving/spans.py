"""Spans for OpenTelemetry, of requests whose sender sampled their trace. The extra `otel`, and the standard's own settings:

    OTEL_EXPORTER_OTLP_ENDPOINT, or ..._TRACES_ENDPOINT    where to, by OTLP over HTTP; without one there are no spans
    OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_*, OTEL_SDK_DISABLED    as the SDK has it

A span is made by the thread that is told of answers, waits in the SDK's bounded queue and is sent by the SDK's thread; one
that finds the queue full, or the collector away, is dropped by the SDK, which says so in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from serving.tracing import Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger("coppice")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
ATTRIBUTES = {
    "x-request-id": "coppice.request_id",
    "x-model-version": "coppice.model_version",
    "x-arm": "coppice.arm",
    "x-fallback-from": "coppice.fallback_from",
}


class Spans:
    """One worker's; the exporter's thread starts here, so after the fork."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("coppice")

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Spans | None:
        """None where no endpoint is set or the standard says no; and, told in the log, where the extra is missing."""
        endpoint = next((environ[name] for name in ENDPOINTS if environ.get(name)), "")
        if (
            not endpoint
            or environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
            or environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
        ):
            return None
        try:
            return cls(_provider())
        except ImportError as missing:
            logger.warning(
                "an OTLP endpoint is set, but no spans are sent: the extra `otel` is missing (%s)", missing.name
            )
            return None

    def emit(
        self, method: str, path: str, status: int, at_us: int, took_us: int, trace: Trace, told: Mapping[str, str]
    ) -> None:
        from opentelemetry import trace as api

        parent = api.SpanContext(
            trace_id=int(trace.trace_id, 16),
            span_id=int(trace.span_id, 16),
            is_remote=True,
            trace_flags=api.TraceFlags(api.TraceFlags.SAMPLED),
            trace_state=api.TraceState.from_header([trace.state.decode("latin-1")]),
        )
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "url.path": path,
            "http.response.status_code": status,
        }
        attributes |= {name: told[header] for header, name in ATTRIBUTES.items() if header in told}
        span = self._tracer.start_span(
            f"{method} {path}",
            context=api.set_span_in_context(api.NonRecordingSpan(parent)),
            kind=api.SpanKind.SERVER,
            attributes=attributes,
            start_time=at_us * 1000,
        )
        if status >= 500:
            span.set_status(api.StatusCode.ERROR)
        span.end((at_us + took_us) * 1000)

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def _provider() -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

    service = {"service.name": "coppice"}
    provider = TracerProvider(
        sampler=ParentBased(ALWAYS_OFF),
        resource=Resource(service).merge(Resource.create()),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
