"""Traces: which calls have spans, what they say, that they arrive, and that nobody waits for them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

otlp = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

from opentelemetry.sdk.trace import ReadableSpan  # noqa: E402 (only where it is installed)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

from server.call import MAX_STAGES, Call, traced  # noqa: E402
from server.client_calls import explain_request  # noqa: E402
from server.traces import MAX_SPANS, Traces, open_traces  # noqa: E402
from tests.conftest import ROOT, SIZE, running_server  # noqa: E402
from tests.server.test_metrics import free_port, infer_request, wait_until  # noqa: E402

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, LEFT_OUT = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
PICTURE = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
EXPLAIN, INFER = "/pellucid.v1.ExplainService/Explain", "/inference.GRPCInferenceService/ModelInfer"
Metadata = Sequence[tuple[str, str]]


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def traces(spans: InMemorySpanExporter, share: float) -> Traces:
    return Traces(SimpleSpanProcessor(spans), share)


def over(which: Traces, metadata: Metadata = (), code: grpc.StatusCode = grpc.StatusCode.OK, **more: object) -> Call:
    """Let a call come and go, if it is traced."""
    call = Call("/service/Method", parent=which.parent(metadata), **more)
    if call.parent is not None:
        call.stage("decode", 100.0, 100.25)
        call.stage("run", 100.5, 101.0, batch_pictures=7, batch_requests=3)
        which.over(call, 100.0, 102.0, code)
    return call


def named(found: Sequence[ReadableSpan], name: str) -> ReadableSpan:
    return next(span for span in found if span.name == name)


def test_a_call_is_a_span_with_a_child_for_each_stage(spans: InMemorySpanExporter) -> None:
    over(traces(spans, 1), model="tiny/3", request_id="abc")
    found = spans.get_finished_spans()
    whole, decode, run = (named(found, name) for name in ("service/Method", "decode", "run"))
    assert len(found) == 3
    assert whole.parent is None
    assert whole.kind.name == "SERVER"
    assert dict(whole.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": "service/Method",
        "rpc.response.status_code": "OK",
        "pellucid.model": "tiny",
        "pellucid.version": "3",
        "pellucid.request_id": "abc",
    }
    assert whole.end_time - whole.start_time == 2_000_000_000
    assert run.start_time - whole.start_time == 500_000_000
    assert run.end_time - run.start_time == 500_000_000
    assert dict(run.attributes) == {"pellucid.batch_pictures": 7, "pellucid.batch_requests": 3}
    assert {child.parent.span_id for child in (decode, run)} == {whole.context.span_id}
    assert whole.resource.attributes["service.name"] == "pellucid"


def test_a_caller_decides_for_its_own_trace_and_chance_for_the_others(spans: InMemorySpanExporter) -> None:
    none, every, half = traces(spans, 0), traces(spans, 1), traces(spans, 0.5)
    assert over(none, [("traceparent", SAMPLED)]).parent is not None
    assert over(every, [("traceparent", LEFT_OUT)]).parent is None
    whole = named(spans.get_finished_spans(), "service/Method")
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert f"{whole.parent.span_id:016x}" == SPAN
    assert over(none).parent is None
    taken = sum(half.parent(()) is not None for _ in range(1000))
    assert 400 < taken < 600


@pytest.mark.parametrize(
    "text",
    ["", "00", f"00-{TRACE}-{SPAN}", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{'x' * 32}-{SPAN}-01"],
)
def test_a_traceparent_that_is_none_is_as_if_it_were_not_there(spans: InMemorySpanExporter, text: str) -> None:
    assert traces(spans, 0).parent([("traceparent", text)]) is None
    over(traces(spans, 1), [("traceparent", text)])
    assert named(spans.get_finished_spans(), "service/Method").parent is None


def test_only_the_servers_own_failures_are_errors(spans: InMemorySpanExporter) -> None:
    for code, error in ((grpc.StatusCode.NOT_FOUND, False), (grpc.StatusCode.INTERNAL, True)):
        spans.clear()
        over(traces(spans, 1), code=code)
        whole = named(spans.get_finished_spans(), "service/Method")
        assert whole.attributes["rpc.response.status_code"] == code.name
        assert (whole.status.status_code.name == "ERROR") is error
        assert ("error.type" in whole.attributes) is error


def test_a_stream_of_any_length_remembers_a_bounded_number_of_stages() -> None:
    call = Call("/service/Method", parent=object())
    for _ in range(10 * MAX_STAGES):
        call.stage("run", 0, 1)
    assert len(call.stages) == MAX_STAGES
    assert traced() is None


class Collector:
    """A small OTLP receiver: real bytes over the wire."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, str], object]] = []
        self.lock = threading.Lock()

    def export(self, request: object, context: grpc.ServicerContext) -> object:
        for resource in request.resource_spans:
            told = {each.key: each.value.string_value for each in resource.resource.attributes}
            with self.lock:
                self.spans += [(told, span) for scope in resource.scope_spans for span in scope.spans]
        return otlp.ExportTraceServiceResponse()

    def of_calls(self) -> list[object]:
        with self.lock:
            return [span for _, span in self.spans if span.kind == span.SPAN_KIND_SERVER]

    def children(self, parent: object) -> dict[str, object]:
        with self.lock:
            return {span.name: span for _, span in self.spans if span.parent_span_id == parent.span_id}


@contextmanager
def collecting(port: int = 0) -> Iterator[tuple[int, Collector]]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(
        collector.export, otlp.ExportTraceServiceRequest.FromString, otlp.ExportTraceServiceResponse.SerializeToString
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield port, collector
    finally:
        server.stop(0).wait()


def call(address: str, method: str, data: bytes, metadata: Metadata = ()) -> None:
    with grpc.insecure_channel(address) as channel:
        channel.unary_unary(method)(data, timeout=20, metadata=metadata)


def attributes(span: object) -> dict[str, object]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_sampled_calls_reach_the_collector_with_their_stages_when_the_server_stops(repository: Path) -> None:
    explain = explain_request(PICTURE, model="tiny").SerializeToString()
    with collecting() as (port, collector):
        arguments = ["--repository", str(repository), "--traces-endpoint", f"http://127.0.0.1:{port}"]
        with running_server(*arguments, "--traces-sample", "0") as (address, _):
            call(address, EXPLAIN, explain)
            call(address, EXPLAIN, explain, [("traceparent", SAMPLED), ("x-request-id", "mine")])
            call(address, INFER, infer_request().SerializeToString(), [("traceparent", SAMPLED)])
            with pytest.raises(grpc.RpcError):
                call(address, EXPLAIN, b"\xff", [("traceparent", SAMPLED)])
        found = collector.of_calls()
        first, second, third = sorted(found, key=lambda span: span.start_time_unix_nano)
        assert [span.name for span in (first, second, third)] == [EXPLAIN[1:], INFER[1:], EXPLAIN[1:]]
        assert {span.trace_id.hex() for span in found} == {TRACE}
        assert {span.parent_span_id.hex() for span in found} == {SPAN}
        assert attributes(first)["pellucid.request_id"] == "mine"
        assert attributes(first)["pellucid.model"] == "tiny"
        assert attributes(first)["pellucid.version"] == "1"
        assert attributes(third)["rpc.response.status_code"] == "INVALID_ARGUMENT"
        assert not collector.children(third)
        for span, pictures in ((first, 1), (second, 2)):
            stages = collector.children(span)
            assert set(stages) == {"decode", "queue", "run", "encode"}
            assert attributes(stages["run"])["pellucid.batch_pictures"] == pictures
            order = [stages[name] for name in ("decode", "queue", "run", "encode")]
            times = [at for stage in order for at in (stage.start_time_unix_nano, stage.end_time_unix_nano)]
            assert times == sorted(times)
            assert span.start_time_unix_nano <= times[0]
            assert times[-1] <= span.end_time_unix_nano
            assert abs(time.time_ns() - times[-1]) < 120e9
        assert collector.spans[0][0]["service.name"] == "pellucid"


def test_without_a_collector_calls_are_answered_the_log_says_so_once_and_the_end_does_not_wait(
    repository: Path,
) -> None:
    port = free_port()
    arguments = [
        "--repository",
        str(repository),
        "--traces-endpoint",
        f"http://127.0.0.1:{port}",
        "--grace-seconds",
        "1",
    ]
    explain = explain_request(PICTURE).SerializeToString()
    with running_server(*arguments, "--traces-sample", "1") as (address, process):
        with grpc.insecure_channel(address) as channel:
            method = channel.unary_unary(EXPLAIN)
            for _ in range(600):  # more than one batch of spans
                method(explain, timeout=20)
        process.terminate()
        assert process.wait(30) == 0
        log = process.stderr.read()
    assert log.count("traces do not reach") <= 1
    assert "Traceback" not in log
    assert "Failed to export" not in log


def test_spans_wait_for_a_collector_in_bounded_memory_and_arrive_when_it_is_back() -> None:
    port = free_port()
    which = open_traces(f"http://127.0.0.1:{port}", 1)
    for _ in range(3000):
        over(which)  # three spans each
    with collecting(port) as (_, collector):
        wait_until(lambda: len(collector.spans) > 0, 60)
        which.close()
        assert len(collector.spans) <= MAX_SPANS + 2 * 512  # what waited, and what was being sent


def test_nothing_of_opentelemetry_is_loaded_unless_calls_are_to_be_traced() -> None:
    program = "import sys, server.app; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_where_it_is_not_installed_the_server_says_what_to_install(repository: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None; from server.__main__ import main;"
        f" sys.exit(main(['--repository', {str(repository)!r}, '--port', '0', '--traces-endpoint', 'http://h:1']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert "install pellucid[tracing]" in done.stderr
