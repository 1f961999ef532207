"""OpenTelemetry traces: one span a call, one for each of its stages, made when the call is over.

Nothing of OpenTelemetry is loaded unless calls are to be traced, and nothing of it is called for those that are not.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import grpc

from analyzers import __version__
from analyzers.errors import PellucidError
from server.call import Call, Metadata

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = logging.getLogger("pellucid.traces")

MAX_SPANS = 2048  # that wait for the collector; more are dropped
CLOSE_SECONDS = 2.0  # for what still waits when the server stops
EXPORT_SECONDS = 10.0
_SAMPLED = 1

# A server's own failures; the others are the client's. From the semantic conventions for gRPC.
_FAILURES = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}


class TracesError(PellucidError):
    """Calls are to be traced, and OpenTelemetry is not installed."""


class Traces:
    """Turns calls into spans; see `server.calls.Tracer`.

    Args:
        processor: takes the spans.
        share: 0 to 1, of the calls that are traced whose caller does not say whether they are to be.
    """

    def __init__(self, processor: SpanProcessor, share: float) -> None:
        from opentelemetry.context import Context
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME", "pellucid"),
                "service.version": __version__,
                "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
            }
        )
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("pellucid", __version__)
        self._share = share
        self._root = Context()
        self._random = random.Random()  # noqa: S311 (a sample, not a secret)

    def parent(self, metadata: Metadata) -> Context | None:
        """Return what a call's span belongs to; None where it is not traced: its caller decides, or else chance."""
        text = next((value for key, value in metadata if key == "traceparent"), None)
        flags = _flags(text) if isinstance(text, str) else None
        if flags is None:
            return self._root if self._random.random() < self._share else None
        return _remote(metadata) if flags & _SAMPLED else None

    def over(self, call: Call, began: float, ended: float, code: grpc.StatusCode) -> None:
        """Make the spans of a traced call that began and ended at these seconds of `time.monotonic`."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        epoch = time.time_ns() - time.monotonic_ns()  # of the monotonic clock

        def at(seconds: float) -> int:
            return epoch + round(seconds * 1e9)

        parent = call.parent if isinstance(call.parent, Context) else None
        span = self._tracer.start_span(
            call.method[1:], parent, SpanKind.SERVER, _attributes(call, code), start_time=at(began)
        )
        inside = set_span_in_context(span, self._root)
        for stage in call.stages:
            numbers = {f"pellucid.{name}": value for name, value in stage.numbers.items()}
            self._tracer.start_span(stage.name, inside, attributes=numbers, start_time=at(stage.began)).end(
                at(stage.ended)
            )
        if code in _FAILURES:
            span.set_status(Status(StatusCode.ERROR))
        span.end(at(ended))

    def close(self) -> None:
        """Send what still waits; give up after `CLOSE_SECONDS`, as an absent collector must not hold up the end."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


def open_traces(endpoint: str, share: float) -> Traces:
    """Return what sends spans to an OTLP collector, in batches and in a thread of its own.

    Args:
        endpoint: http://HOST:PORT or https://HOST:PORT, gRPC.
        share: see `Traces`.

    Raises:
        TracesError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracesError(
            f"traces need OpenTelemetry, and {error.name} is not installed; install pellucid[tracing], or leave out"
            " --traces-endpoint"
        ) from None
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # a line for each try would fill the log
    told = _Told(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS), endpoint)
    return Traces(BatchSpanProcessor(cast("SpanExporter", told), max_queue_size=MAX_SPANS), share)


class _Told:
    """An exporter around another, that says once that spans do not arrive, and once that they do again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._arrive = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans."""
        result = self._exporter.export(spans)
        arrive = result.name == "SUCCESS"
        if arrive and not self._arrive:
            log.info("traces reach %s again", self._endpoint)
        if self._arrive and not arrive:
            log.warning("traces do not reach %s; they are dropped until they do", self._endpoint)
        self._arrive = arrive
        return result

    def shutdown(self) -> None:
        """Send nothing any more."""
        self._exporter.shutdown()


def _flags(traceparent: str) -> int | None:
    """Return the flags of a W3C traceparent, None where it is none."""
    fields = traceparent.split("-")
    if len(fields) < 4 or [len(field) for field in fields[:4]] != [2, 32, 16, 2]:
        return None
    try:
        numbers = [int(field, 16) for field in fields[:4]]
    except ValueError:
        return None
    return numbers[3] if numbers[0] < 0xFF and numbers[1] and numbers[2] else None


def _remote(metadata: Metadata) -> Context:
    """Return the caller's span as a parent."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {key: value for key, value in metadata if isinstance(value, str)}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _attributes(call: Call, code: grpc.StatusCode) -> dict[str, str]:
    name, _, version = call.model.partition("/")
    found = {"rpc.system.name": "grpc", "rpc.method": call.method[1:], "rpc.response.status_code": code.name}
    more = {
        "pellucid.model": name,
        "pellucid.version": version,
        "pellucid.request_id": call.request_id,
        "error.type": code.name if code in _FAILURES else "",
    }
    return found | {key: value for key, value in more.items() if value}
