"""/metrics: what Prometheus gets, from one process and from several, and how counts of them are added up."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from analyzers.files import write_atomically
from pellucid.v1 import explain_pb2 as pb
from server.call import refused, traced
from server.calls import Calls
from server.client import Client
from server.client_calls import explain_request
from server.metrics import BATCHES, Scrape
from server.oip_messages import oip
from server.readings import ModelReading, Reading
from server.scrape import Other, Own, answer_others
from server.settings import Settings
from server.statistics import BUCKETS, Counts, Histogram, Statistics
from tests.conftest import SIZE, explain_tiny, running_server

PICTURE = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(port: int) -> Samples:
    """Scrape, and return every sample by its name and its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """Return the sum of the samples with these labels among theirs."""
    return sum(v for (n, own), v in found.items() if n == name and labels.items() <= dict(own).items())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@contextmanager
def measured(repository: Path, *arguments: str) -> Iterator[tuple[str, int, subprocess.Popen]]:
    """A server with metrics: its address, the port of its metrics, its process."""
    port = free_port()
    with running_server("--repository", str(repository), "--metrics-port", str(port), *arguments) as (address, process):
        yield address, port, process


def ask(address: str, count: int = 1) -> None:
    with Client(address) as client:
        for _ in range(count):
            client.explain(PICTURE)


def infer_request(**changes: object) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(**({"model_name": "tiny"} | changes))
    given = request.inputs.add(name="image", datatype="FP32", shape=(2, 3, SIZE, SIZE))
    given.contents.fp32_contents.extend([0.5] * (2 * 3 * SIZE * SIZE))
    return request


def infer(address: str, request: oip.ModelInferRequest) -> None:
    with grpc.insecure_channel(address) as channel:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(request.SerializeToString(), timeout=10)


@pytest.fixture(scope="module")
def shared(repository: Path) -> Iterator[tuple[str, int]]:
    with measured(repository) as (address, port, _):
        yield address, port


class Since:
    """What has been counted since it was made."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._before = samples(port)

    def __call__(self, name: str, **labels: str) -> float:
        return value(samples(self._port), name, **labels) - value(self._before, name, **labels)


def test_every_call_is_counted_by_method_and_status_with_its_stages_and_batches(shared: tuple[str, int]) -> None:
    address, port = shared
    since = Since(port)
    ask(address, 3)
    infer(address, infer_request())
    of = {"model": "tiny", "version": "1"}
    assert since("pellucid_requests_total", method="Explain", code="OK") == 3
    assert since("pellucid_requests_total", method="ModelInfer", code="OK") == 1
    assert since("pellucid_request_seconds_count", method="Explain") == 3
    assert 0 < since("pellucid_request_seconds_sum", method="Explain") < 60
    assert since("pellucid_pictures_total", **of) == 5
    for stage, count in {"decode": 4, "queue": 4, "run": 4, "encode": 4}.items():
        assert since("pellucid_stage_seconds_count", stage=stage, **of) == count
        assert since("pellucid_stage_seconds_bucket", stage=stage, le="+Inf", **of) == count
        assert since("pellucid_stage_seconds_sum", stage=stage, **of) > 0
    assert since("pellucid_batch_pictures_bucket", le="1.0", **of) == 3
    assert since("pellucid_batch_pictures_count", **of) == 4
    assert since("pellucid_batch_pictures_sum", **of) == 5


def test_what_is_going_on_is_told_beside_what_was(shared: tuple[str, int]) -> None:
    found = samples(shared[1])
    of = {"model": "tiny", "version": "1"}
    assert found["pellucid_waiting_pictures", tuple(of.items())] == 0
    assert value(found, "pellucid_model_ready", provider="CPUExecutionProvider", **of) == 1
    assert found["pellucid_running_requests", ()] == 0
    assert found["pellucid_processes", ()] == 1
    assert found["process_cpu_seconds_total", ()] > 0
    assert found["process_resident_memory_bytes", ()] > 1 << 20


def test_the_buckets_reach_from_a_tenth_of_a_millisecond_to_ten_seconds_and_add_up(shared: tuple[str, int]) -> None:
    address, port = shared
    ask(address, 5)
    found = samples(port)
    buckets = {
        float(dict(labels)["le"]): count
        for (name, labels), count in found.items()
        if name == "pellucid_request_seconds_bucket" and ("method", "Explain") in labels
    }
    assert list(buckets) == [*BUCKETS, float("inf")]
    assert (BUCKETS[0], BUCKETS[-1]) == (1e-4, 10)
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets[float("inf")] == value(found, "pellucid_request_seconds_count", method="Explain") >= 5


def test_what_clients_make_up_never_becomes_a_label(shared: tuple[str, int]) -> None:
    address, port = shared
    since = Since(port)
    with grpc.insecure_channel(address) as channel:
        for method in "/pellucid.v1.ExplainService/Nonsense", "/made.up/Nonsense":
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(method)(b"", timeout=10)
        request = pb.ExplainRequest(model="made-up-name", version="99", encoded_images=[b"x"])
        explain = channel.unary_unary("/pellucid.v1.ExplainService/Explain")
        for data in request.SerializeToString(), b"\xff":
            with pytest.raises(grpc.RpcError):
                explain(data, timeout=10)
        with pytest.raises(grpc.RpcError):
            infer(address, infer_request(model_name="made-up-name"))
    labels = {text for _, own in samples(port) for text in dict(own).values()}
    assert not labels & {"made-up-name", "99", "Nonsense", "made.up"}
    assert since("pellucid_requests_total", method="Explain", code="NOT_FOUND") == 1
    assert since("pellucid_requests_total", method="Explain", code="INVALID_ARGUMENT") == 1
    assert since("pellucid_refused_total", reason="UNKNOWN_MODEL") == 2
    assert since("pellucid_refused_total", reason="INVALID_INPUT") == 1


def test_refusals_within_a_stream_are_counted_although_the_stream_ends_well(shared: tuple[str, int]) -> None:
    address, port = shared
    since = Since(port)
    with grpc.insecure_channel(address) as channel:
        requests = [infer_request(), infer_request(model_name="none"), infer_request()]
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        assert len(list(stream(iter([r.SerializeToString() for r in requests]), timeout=20))) == 3
        wait_until(lambda: since("pellucid_requests_total", method="ModelStreamInfer", code="OK") == 1)
    assert since("pellucid_refused_total", reason="UNKNOWN_MODEL") == 1
    assert since("pellucid_pictures_total", model="tiny") == 4


class FakeContext:
    """What gRPC tells a call about itself."""

    def __init__(self, left: float | None = None, code: object = None) -> None:
        self.left = left
        self.status = code

    def time_remaining(self) -> float | None:
        return self.left

    def code(self) -> object:
        return self.status

    def invocation_metadata(self) -> None:
        return None

    def details(self) -> str:
        return ""

    def set_trailing_metadata(self, metadata: object) -> None:
        self.trailing = metadata


@pytest.mark.parametrize(
    ("error", "context", "code"),
    [
        (None, FakeContext(), "OK"),
        (asyncio.CancelledError(), FakeContext(), "CANCELLED"),
        (asyncio.CancelledError(), FakeContext(left=3), "CANCELLED"),
        (asyncio.CancelledError(), FakeContext(left=0), "DEADLINE_EXCEEDED"),
        (RuntimeError(), FakeContext(code=grpc.StatusCode.NOT_FOUND), "NOT_FOUND"),
        (RuntimeError(), FakeContext(code=5), "NOT_FOUND"),
        (RuntimeError(), FakeContext(), "UNKNOWN"),
    ],
)
def test_a_call_is_counted_as_what_its_client_sees(
    error: BaseException | None, context: FakeContext, code: str
) -> None:
    async def behaviour(data: bytes, context: FakeContext) -> bytes:
        assert traced() is None
        refused("REASON")
        if error is not None:
            raise error
        return data

    calls = Calls()
    handlers = calls.watched("service", {"Name": grpc.unary_unary_rpc_method_handler(behaviour)})
    with nullcontext() if error is None else pytest.raises(type(error)):
        asyncio.run(handlers["Name"].unary_unary(b"", context))
    assert calls.codes == {("Name", code): 1}
    assert calls.refused == {"REASON": 1}
    assert calls.seconds["Name"].count == 1
    refused("OUTSIDE")  # of any call: nobody's
    assert calls.refused == {"REASON": 1}


def test_calls_under_way_are_shown_and_those_beyond_the_limit_counted_as_refused(repository: Path) -> None:
    stop = threading.Event()
    with (
        measured(repository, "--max-requests", "1") as (address, port, _),
        grpc.insecure_channel(address) as channel,
    ):
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        call = stream((b"" for _ in [0] if stop.wait()), timeout=60)
        wait_until(lambda: samples(port)["pellucid_running_requests", ()] == 1)
        with pytest.raises(grpc.RpcError) as refusal:
            channel.unary_unary("/pellucid.v1.ExplainService/Explain")(explain_request(PICTURE).SerializeToString())
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        call.cancel()
        stop.set()
        wait_until(lambda: samples(port)["pellucid_running_requests", ()] == 0)
        found = samples(port)
    assert value(found, "pellucid_refused_total") == value(found, "pellucid_refused_total", reason="OVERLOADED") == 1
    assert value(found, "pellucid_requests_total", method="Explain", code="RESOURCE_EXHAUSTED") == 1


def test_a_refused_file_is_not_ready(tmp_path: Path, tiny_model: bytes) -> None:
    write_atomically(tmp_path / "tiny" / "1" / "model.onnx", tiny_model)
    write_atomically(tmp_path / "bad" / "7" / "model.onnx", tiny_model[:-100])
    with measured(tmp_path) as (_, port, _):
        found = samples(port)
    ready = {own: v for (name, own), v in found.items() if name == "pellucid_model_ready"}
    assert {tuple(dict(own).values()): v for own, v in ready.items()} == {
        ("tiny", "CPUExecutionProvider", "1"): 1,
        ("bad", "", "7"): 0,
    }


def test_without_a_port_nothing_listens_and_a_taken_port_is_one_sentence(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for processes in "1", "2":
            command = [sys.executable, "-m", "server", "--repository", str(repository), "--port", "0"]
            command += ["--metrics-port", str(port), "--processes", processes]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 1
            assert done.stderr.strip().splitlines() == [
                f"pellucid-serve: error: cannot serve metrics on 127.0.0.1:{port}; the port is taken or the address is"
                " not this machine's"
            ]


def test_one_scrape_shows_all_processes_and_what_a_killed_one_counted(repository: Path) -> None:
    with measured(repository, "--processes", "2") as (address, port, process):
        for _ in range(8):
            ask(address, 5)  # each connection reaches one of them
        before = samples(port)
        assert value(before, "pellucid_requests_total", method="Explain", code="OK") == 40
        assert value(before, "pellucid_pictures_total") == 40
        assert before["pellucid_processes", ()] == 2
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        servers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(int(servers[0]), signal.SIGKILL)
        wait_until(lambda: samples(port)["pellucid_processes", ()] == 1)
        alone = samples(port)
        wait_until(lambda: samples(port)["pellucid_processes", ()] == 2)
        ask(address, 5)
        after = samples(port)
    for found, count in (alone, 40), (after, 45):
        assert value(found, "pellucid_requests_total", method="Explain", code="OK") == count
        assert value(found, "pellucid_pictures_total") == count
        assert value(found, "pellucid_stage_seconds_count", stage="run") == count
        assert value(found, "pellucid_running_requests") == 0
    assert before["process_cpu_seconds_total", ()] <= alone["process_cpu_seconds_total", ()]
    assert alone["process_resident_memory_bytes", ()] < before["process_resident_memory_bytes", ()]
    assert value(after, "pellucid_model_ready") == 1


def test_counts_do_not_fall_when_a_version_is_loaded_anew(tmp_path: Path, tiny_model: bytes) -> None:
    file = tmp_path / "tiny" / "1" / "model.onnx"
    write_atomically(file, tiny_model)
    with measured(tmp_path, "--poll-seconds", "0.1", "--log-level", "info") as (address, port, process):
        ask(address, 4)
        assert value(samples(port), "pellucid_pictures_total", model="tiny") == 4
        write_atomically(file, explain_tiny(seed=3)[2].SerializeToString())
        while "tiny/1 ready" not in process.stderr.readline():
            pass  # of the start
        while "tiny/1 ready" not in process.stderr.readline():
            pass
        ask(address, 2)
        assert value(samples(port), "pellucid_pictures_total", model="tiny") == 6
        shutil.rmtree(file.parent)
        wait_until(lambda: ("pellucid_pictures_total", (("model", "tiny"), ("version", "1"))) not in samples(port))


class Fake:
    """A process whose reading can be set."""

    def __init__(self, reading: Reading | None) -> None:
        self.reading = reading
        self.gone = False

    def ask(self) -> None:
        if self.gone:
            raise BrokenPipeError

    def answer(self, until: float) -> Reading | None:
        return self.reading


def reading(pictures: int, waiting: int = 0, since: int = 1, seconds: float = 0.002) -> Reading:
    counts = Counts(pictures=pictures, infer=Histogram())
    counts.infer.add(seconds)
    model = ModelReading(True, "CPU", since, counts, waiting)
    return Reading(running=waiting, models={("m", "1"): model}, process={"process_cpu_seconds": float(pictures)})


def scraped(scrape: Scrape) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in scrape.collect()
        for sample in family.samples
    }


def test_counters_outlive_their_process_and_gauges_do_not() -> None:
    scrape, first, second = Scrape(), Fake(reading(10, waiting=3)), Fake(reading(5, waiting=2))
    scrape.add(first)
    scrape.add(second)
    found = scraped(scrape)
    assert value(found, "pellucid_pictures_total") == 15
    assert value(found, "pellucid_waiting_pictures") == value(found, "pellucid_running_requests") == 5
    first.gone = True
    for _ in range(2):
        found = scraped(scrape)
        assert value(found, "pellucid_pictures_total") == 15
        assert value(found, "process_cpu_seconds_total") == 15
        assert value(found, "pellucid_stage_seconds_bucket", stage="run", le="0.0025") == 2
        assert value(found, "pellucid_waiting_pictures") == value(found, "pellucid_running_requests") == 2
    second.reading = reading(1, since=2)  # loaded anew
    assert value(scraped(scrape), "pellucid_pictures_total") == 16
    second.reading = Reading()  # unloaded
    assert value(scraped(scrape), "pellucid_pictures_total") == 0


def test_a_process_that_is_replaced_leaves_nothing_open_even_if_nobody_scrapes() -> None:
    scrape, sources = Scrape(), []
    for _ in range(3):
        ours, theirs = multiprocessing.Pipe()
        sources.append(Other(ours))
        scrape.add(sources[-1])
        assert not sources[-1].gone
        theirs.close()
        assert sources[-1].gone
    left = weakref.ref(sources.pop(0))
    assert left() is None  # the scrape does not hold it any more
    assert scraped(scrape)["pellucid_processes", ()] == 0


def test_a_process_answers_through_a_pipe_until_the_pipe_is_closed() -> None:
    ours, theirs = multiprocessing.Pipe()
    answer_others(theirs, lambda: reading(3))
    other = Other(ours)
    for _ in range(2):
        other.ask()
        assert other.answer(time.monotonic() + 30).models["m", "1"].counts.pictures == 3
    ours.close()
    assert other.gone


def test_a_process_that_does_not_answer_shows_what_it_said_last() -> None:
    scrape, slow = Scrape(), Fake(reading(7))
    scrape.add(slow)
    assert value(scraped(scrape), "pellucid_pictures_total") == 7
    slow.reading = None
    assert value(scraped(scrape), "pellucid_pictures_total") == 7


def test_a_model_is_ready_only_where_every_process_has_it() -> None:
    scrape, late = Scrape(), Fake(Reading(models={("m", "1"): ModelReading()}))
    scrape.add(Own(lambda: reading(1)))
    scrape.add(late)
    assert value(scraped(scrape), "pellucid_model_ready", provider="CPU") == 0
    late.reading = reading(1)
    assert value(scraped(scrape), "pellucid_model_ready", provider="CPU") == 1


def test_statistics_are_one_account_for_both_protocols() -> None:
    statistics = Statistics()
    statistics.decoded(0.0001)
    statistics.answered(3, 0.2, 0.00011, 0.3)
    statistics.ran(200, 20, 0.1)
    counts = statistics.snapshot()
    assert counts.decode.buckets[0] == 1  # a value on a bound is in the bucket below
    assert counts.encode.buckets[1] == 1
    assert counts.infer.buckets[-1] == 1
    assert (counts.queue.count, counts.queue.seconds, sum(counts.queue.buckets)) == (1, 0.2, 1)
    assert max(BATCHES) < 200


@pytest.mark.parametrize(
    "setting", [{"metrics_port": 70000}, {"traces_sample": 2}, {"traces_endpoint": "collector:4317"}]
)
def test_settings_that_make_no_sense_are_refused(repository: Path, setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(setting))):
        Settings(repository=repository, **setting)
