"""Connections end when they are old and nothing is lost by it; the settings are gRPC's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from server.app import SERVICE
from server.client import Client
from server.connections import connection_options
from server.oip_messages import SERVICE as OPEN_INFERENCE
from server.oip_messages import oip
from server.settings import Settings
from tests.conftest import SIZE, running_server

PICTURE = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def hasty(repository: Path) -> Iterator[str]:
    """The address of a server whose connections are old after a fifth of a second."""
    with running_server("--repository", str(repository), "--connection-age-seconds", "0.2") as (address, _):
        yield address


def connections(states: list[grpc.ChannelConnectivity]) -> int:
    return states.count(grpc.ChannelConnectivity.READY)


def test_calls_go_on_over_a_new_connection_when_the_old_one_ends(hasty: str) -> None:
    states: list[grpc.ChannelConnectivity] = []
    with grpc.insecure_channel(hasty) as channel:
        channel.subscribe(states.append, try_to_connect=True)
        ask = channel.unary_unary(f"/{SERVICE}/ListModels")
        end = time.monotonic() + 30
        while connections(states) < 6:
            assert ask(b"", timeout=10)
            assert time.monotonic() < end, "connections do not end"


def tritons(address: str) -> Callable[[], object]:
    client = triton.InferenceServerClient(address)
    tensor = triton.InferInput("image", [1, SIZE, SIZE, 3], "UINT8")
    tensor.set_data_from_numpy(PICTURE[None])
    return lambda: client.infer("tiny", [tensor]).get_response()


def ours(address: str, retries: int) -> Callable[[], object]:
    client = Client(address, retries=retries)
    return lambda: client.explain(PICTURE)


CLIENTS = {"ours": lambda address: ours(address, 4), "ours, without retries": lambda address: ours(address, 0)}


@pytest.mark.parametrize("client", [*CLIENTS.values(), tritons], ids=[*CLIENTS, "triton's"])
def test_no_client_loses_a_call_when_connections_end(hasty: str, client: Callable[[str], Callable[[], object]]) -> None:
    once, lost, answered = client(hasty), list[Exception](), list[object]()
    end = time.monotonic() + 1.5

    def ask() -> None:
        while time.monotonic() < end:
            try:
                answered.append(once())
            except Exception as error:
                lost.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    assert len(answered) > 10


def test_a_stream_goes_on_however_old_its_connection_is(hasty: str) -> None:
    request = oip.ModelInferRequest(model_name="lion").SerializeToString()

    def slowly() -> Iterator[bytes]:
        for _ in range(4):
            yield request
            time.sleep(0.3)

    with grpc.insecure_channel(hasty) as channel:
        answers = list(channel.stream_stream(f"/{OPEN_INFERENCE}/ModelStreamInfer")(slowly(), timeout=30))
    assert len(answers) == 4


@pytest.mark.parametrize(
    ("setting", "option", "value"),
    [
        ({"connection_age_seconds": 0.5}, "grpc.max_connection_age_ms", 500),
        ({}, "grpc.max_connection_age_ms", None),
        ({"connection_age_seconds": 1, "connection_age_grace_seconds": 2}, "grpc.max_connection_age_grace_ms", 2000),
        ({}, "grpc.max_connection_age_grace_ms", None),
        ({"max_streams": 7}, "grpc.max_concurrent_streams", 7),
        ({}, "grpc.max_concurrent_streams", None),
        ({"keepalive_seconds": 5}, "grpc.keepalive_time_ms", 5000),
        ({"keepalive_timeout_seconds": 3}, "grpc.keepalive_timeout_ms", 3000),
        ({"min_ping_seconds": 4}, "grpc.http2.min_ping_interval_without_data_ms", 4000),
        ({}, "grpc.so_reuseport", 0),
        ({"processes": 2}, "grpc.so_reuseport", 1),
    ],
)
def test_each_setting_becomes_grpc_s_own(setting: dict[str, float], option: str, value: int | None) -> None:
    assert dict(connection_options(Settings(repository=Path(), **setting))).get(option) == value
