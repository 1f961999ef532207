"""Two replicas of Ray Serve on this machine answer what the plain server answers, and outlive one of them."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2

from benchmarks.serving.processes import family, free_port
from pellucid.v1 import explain_pb2 as pb
from server.async_client import AsyncClient
from server.client import Client, Health
from server.client_calls import explain_request
from server.errors import DETAILS_KEY
from server.oip_messages import FILE as OPEN_INFERENCE
from server.oip_messages import oip
from tests.conftest import ROOT, SIZE, png

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")

PICTURES = np.random.default_rng(7).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
ENCODED = [png(picture) for picture in PICTURES]
EXPLAIN = "/pellucid.v1.ExplainService/Explain"
LIMIT = 1 << 20


@dataclass(frozen=True)
class Replicas:
    address: str
    process: int

    @property
    def pids(self) -> list[int]:
        """Process ids of the replicas that live."""
        return [pid for pid in family(self.process) if "ray::ServeReplica" in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has just ended
        return ""


@pytest.fixture(scope="module")
def replicas(repository: Path) -> Iterator[Replicas]:
    """A Ray of our own with two replicas; it ends as it should, or what is left is killed and a test fails."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "server.ray_app", "--repository", str(repository), "--replicas", "2"]
        command += ["--port", str(port), "--http-port", str(free_port()), "--ray-folder", f"{folder}/ray"]
        command += ["--object-store-bytes", str(100 << 20), "--max-request-bytes", str(LIMIT), "--log-level", "warning"]
        log = Path(folder, "log")
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            wait_until(lambda: "listening on " in log.read_text() or process.poll() is not None, 180)
            if process.poll() is not None:
                pytest.fail(f"it did not start: {log.read_text()[-3000:]}")
            yield Replicas(f"127.0.0.1:{port}", process.pid)
        finally:
            assert end(process) == (0, []), log.read_text()[-3000:]


def end(process: subprocess.Popen) -> tuple[int | None, list[str]]:
    """Stop it as Ctrl-C does; return its exit code and what had to be killed."""
    members = {pid: command_of(pid) for pid in family(process.pid)}
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired, AssertionError):
        process.wait(90)
        wait_until(lambda: not any(map(command_of, members)), 30)
    left = {pid: command for pid, command in members.items() if command and command_of(pid) == command}
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)
    return process.returncode, list(left.values())


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_both_clients_get_the_plain_server_s_explanations_to_the_bit(replicas: Replicas, address: str) -> None:
    options = {"top_k_classes": 3, "evidence": "float32"}
    with Client(address) as client:
        expected = [client.explain([picture], **options)[0] for picture in ENCODED]
        request = explain_request(PICTURES, **options).SerializeToString()
        described = client.get_model("tiny")
    with Client(replicas.address, channels=2) as client:
        for _ in range(4):  # either replica is likely to be asked each of them
            assert [client.explain([picture], **options)[0] for picture in ENCODED] == expected
        assert client.get_model("tiny") == described
        assert client.health() is Health.SERVING

    async def ask() -> list[object]:
        async with AsyncClient(replicas.address) as client:
            return await asyncio.gather(*(client.explain([picture], **options) for picture in ENCODED))

    assert [answer for (answer,) in asyncio.run(ask())] == expected
    answers = {call(target, EXPLAIN, request)[2] for target in (address, replicas.address)}
    assert len(answers) == 1
    assert pb.ExplainResponse.FromString(answers.pop()).explanations


def given(images: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return tensor


def tensors(result: triton.InferResult) -> tuple[object, ...]:
    response = result.get_response()
    return response.id, [output.name for output in response.outputs], list(response.raw_output_contents)


def streamed(target: str) -> list[object]:
    came: queue.Queue[object] = queue.Queue()
    with triton.InferenceServerClient(target) as client:
        client.start_stream(lambda result, error: came.put(str(error) if error else tensors(result)))
        for number in range(40):
            fits = number % 8 != 3
            images = PICTURES[number % 5 :][:1] if fits else PICTURES[:1, 1:]
            client.async_stream_infer("tiny", [given(images)], request_id=str(number))
        answers = [came.get(timeout=60) for _ in range(40)]
        client.stop_stream()
    return answers


def test_tritonclient_gets_the_plain_server_s_tensors_alone_and_in_streams(replicas: Replicas, address: str) -> None:
    alone = []
    for target in (address, replicas.address):
        with triton.InferenceServerClient(target) as client:
            assert client.is_server_ready()
            assert client.is_model_ready("tiny")
            alone.append([tensors(client.infer("tiny", [given(PICTURES)], request_id="7")) for _ in range(4)])
        question = oip.ModelMetadataRequest(name="tiny").SerializeToString()
        answer = call(target, "/inference.GRPCInferenceService/ModelMetadata", question)[2]
        alone[-1] += [oip.ModelMetadataResponse.FromString(answer)]
    assert alone[0] == alone[1]
    assert streamed(replicas.address) == streamed(address)


def call(target: str, method: str, data: bytes) -> tuple[str, str, bytes]:
    """Return a call's status, its sentence, and its details or its answer."""
    with grpc.insecure_channel(target) as channel:
        try:
            return "OK", "", channel.unary_unary(method)(data, timeout=60)
        except grpc.RpcError as error:
            details = dict(error.trailing_metadata()).get(DETAILS_KEY, b"")
            return error.code().name, error.details(), without_request_id(details)


def without_request_id(details: bytes) -> bytes:
    """Return an error's details without the name of the call, which is another one each time."""
    status = status_pb2.Status.FromString(details)
    for packed in status.details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            info.metadata.clear()
            packed.Pack(info)
    return status.SerializeToString()


def methods() -> list[str]:
    explain = pb.DESCRIPTOR.services_by_name["ExplainService"]
    inference = OPEN_INFERENCE.services_by_name["GRPCInferenceService"]
    return [
        f"/{service.full_name}/{method.name}"
        for service in (explain, inference)
        for method in service.methods
        if not method.client_streaming
    ]


def test_every_call_that_fails_has_the_plain_server_s_status_sentence_and_details(
    replicas: Replicas, address: str
) -> None:
    questions = [(method, data) for method in methods() for data in (b"", b"\xff\xff\xff")]
    questions += [
        (EXPLAIN, pb.ExplainRequest(model="lion", encoded_images=ENCODED).SerializeToString()),
        (EXPLAIN, pb.ExplainRequest(encoded_images=[b"no picture"]).SerializeToString()),
        (EXPLAIN.replace("Explain", "Nothing"), b""),
        (EXPLAIN.replace("Service/Explain", "Service/Nothing"), b""),
        ("/inference.GRPCInferenceService/ModelInfer", oip.ModelInferRequest(model_version="9").SerializeToString()),
        ("/grpc.health.v1.Health/Check", b"\x0a\x01a"),
    ]
    failed = set()
    for method, data in questions:
        expected = call(address, method, data)
        if expected[0] != "OK":
            failed.add(expected[0])
            assert call(replicas.address, method, data) == expected, method
    assert failed == {"INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNIMPLEMENTED"}


def test_a_message_that_is_too_large_is_refused_for_good(replicas: Replicas) -> None:
    status, sentence, details = call(replicas.address, EXPLAIN, bytes(LIMIT + 1))
    assert (status, sentence) == ("RESOURCE_EXHAUSTED", f"the message has {LIMIT + 1} bytes; at most {LIMIT} are taken")
    assert b"RetryInfo" not in details
    with grpc.insecure_channel(replicas.address) as channel:
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        with pytest.raises(grpc.RpcError) as caught:
            list(stream(iter([bytes(LIMIT + 1)]), timeout=60))
    assert (caught.value.code().name, caught.value.details()) == (status, sentence)
    assert dict(caught.value.trailing_metadata())[DETAILS_KEY] == details


def test_reflection_lists_the_same_services(replicas: Replicas, address: str) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    answers = []
    for target in (address, replicas.address):
        with grpc.insecure_channel(target) as channel:
            ask = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
            answers.append(list(ask(iter([request]), timeout=60)))
    assert answers[0] == answers[1]
    assert b"ExplainService" in answers[0][0]


def test_a_replica_that_is_killed_under_load_is_replaced_and_no_call_is_lost(replicas: Replicas) -> None:
    stop, answered, lost = threading.Event(), [], []

    def ask() -> None:
        with Client(replicas.address, timeout_seconds=120) as client:
            while not stop.is_set():
                try:
                    answered.append(client.explain(PICTURES[0])[0])
                except Exception as error:
                    lost.append(error)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        first = replicas.pids
        assert len(first) == 2
        wait_until(lambda: len(answered) > 50)
        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: len(set(replicas.pids) - set(first)) == 1 and len(replicas.pids) == 2)
        count = len(answered)
        wait_until(lambda: len(answered) > count + 50)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert not lost
    assert all(answer == answered[0] for answer in answered)


def test_the_file_for_a_cluster_says_what_ray_and_we_expect() -> None:
    program = """
import sys, yaml
from ray.serve.schema import ServeDeploySchema
from server.ray_app import app
from server.ray_edge import SERVICER_FUNCTION
config = ServeDeploySchema.model_validate(yaml.safe_load(open("deploy/ray/serve.yaml")))
assert config.grpc_options.grpc_servicer_functions == [SERVICER_FUNCTION]
(application,) = config.applications
assert application.import_path == "server.ray_app:app"
print(app(application.args)._bound_deployment.num_replicas)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    assert done.stdout.strip().endswith("2"), done.stderr
