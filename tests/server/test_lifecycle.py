"""Starting, being watched, and stopping without losing a request."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from analyzers.files import write_atomically
from server.app import SERVICE
from server.client import Client, ServerError
from tests.conftest import ROOT, png, running_server


@pytest.mark.parametrize("service", ["", SERVICE])
def test_a_healthy_server_says_so(address: str, service: str) -> None:
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_service(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_that_run_at_the_signal_are_answered_and_the_server_exits_with_0(
    repository: Path, number: signal.Signals
) -> None:
    pictures = [png(np.zeros((4000, 4000, 3), np.uint8))] * 6  # small files, half a second or so of decoding
    answers: list[int] = []
    with running_server("--repository", str(repository), "--workers", "1") as (address, process):
        with Client(address) as client:
            client.list_models()
            asking = [threading.Thread(target=lambda: answers.append(len(client.explain(pictures)))) for _ in range(3)]
            for thread in asking:
                thread.start()
            time.sleep(0.3)
            process.send_signal(number)
            for thread in asking:
                thread.join(30)
        assert process.wait(30) == 0
        errors = process.stderr.read()
    assert answers == [6] * 3
    assert "Traceback" not in errors
    assert "stopping" in errors


def test_the_address_is_the_first_and_only_line_on_stdout_whatever_lies_in_the_repository(
    tmp_path: Path, tiny_model: bytes
) -> None:
    write_atomically(tmp_path / "tiny" / "1" / "model.onnx", tiny_model)
    write_atomically(tmp_path / "damaged" / "1" / "model.onnx", tiny_model.replace(b"Conv", b"Co\xffv"))
    command = [sys.executable, "-m", "server", "--port=0", f"--repository={tmp_path}", "--log-level=error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
        try:
            line = process.stdout.readline()
            assert re.fullmatch(r"listening on 127\.0\.0\.1:[1-9]\d*\n", line)
            with Client(line.removeprefix("listening on ").strip()) as client:
                ready = {model.model: model.ready for model in client.list_models()}
        finally:
            process.terminate()
        assert process.stdout.read() == ""
    assert process.returncode == 0
    assert ready == {"damaged": False, "tiny": True}


def test_told_to_stop_while_it_loads_it_ends_with_0_and_does_not_listen_first(
    tmp_path: Path, tiny_model: bytes
) -> None:
    for number in range(40):
        write_atomically(tmp_path / f"tiny-{number}" / "1" / "model.onnx", tiny_model)
    command = [sys.executable, "-m", "server", "--port=0", f"--repository={tmp_path}", "--log-level=debug"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            next(line for line in process.stderr if "trial passed" in line)
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, "")


def test_a_server_that_stops_takes_no_new_requests(repository: Path) -> None:
    with running_server("--repository", str(repository)) as (address, process), Client(address) as client:
        assert client.list_models()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        with pytest.raises(ServerError) as caught:
            client.list_models()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
