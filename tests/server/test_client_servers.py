"""Which servers a client reaches: several, sick, killed, late, with TLS, over several connections; both clients."""

from __future__ import annotations

import inspect
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from analyzers.errors import InvalidInputError
from server.channels import Connection, ConnectionOptions
from server.client import AsyncClient, Client, Health, ServerError
from server.client_calls import ExplainOptions, WhatIfOptions, explain_request, what_if_request
from tests.conftest import SIZE, running_server
from tests.server.client_fakes import Ask, both, echo, fake_server

PICTURES = np.random.default_rng(3).integers(0, 256, (16, SIZE, SIZE, 3), np.uint8)
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def many(ask: Ask, target: object, count: int, **client: object) -> None:
    answers = ask(target, "explain_many", [b"1"] * count, batch=1, concurrency=2, client=client)
    assert len(answers) == count


@both
@pytest.mark.parametrize(
    "target",
    [
        lambda addresses: addresses,
        lambda addresses: ",".join(addresses),
        lambda addresses: [address.replace("127.0.0.1", "localhost") for address in addresses],
        lambda addresses: "ipv4:" + ",".join(addresses),
    ],
    ids=["list", "commas", "names", "gRPC name"],
)
def test_several_servers_take_turns(ask: Ask, target: object) -> None:
    with fake_server(echo) as first, fake_server(echo) as second:
        many(ask, target([first.address, second.address]), 20)
        counts = sorted([len(first.requests), len(second.requests)])
    assert sum(counts) == 20
    assert counts[0] >= 4  # the first to be connected answers alone until the other is


@both
def test_a_server_that_is_not_serving_is_left_out(ask: Ask) -> None:
    with fake_server(echo) as sick, fake_server(echo) as well:
        sick.say(NOT_SERVING)
        many(ask, [sick.address, well.address], 12)
        assert (len(sick.requests), len(well.requests)) == (0, 12)


def test_a_server_that_stops_serving_is_left_alone_and_used_again_when_it_recovers() -> None:
    with fake_server(echo) as one, fake_server(echo) as other, Client([one.address, other.address]) as client:

        def until(condition: object) -> None:
            end = time.monotonic() + 10
            while not condition():
                assert time.monotonic() < end
                client.explain(b"1")

        until(lambda: one.requests and other.requests)
        one.say(NOT_SERVING)
        time.sleep(0.3)
        before = len(one.requests)
        for _ in range(10):
            client.explain(b"1")
        assert len(one.requests) == before
        one.say(health_pb2.HealthCheckResponse.SERVING)
        until(lambda: len(one.requests) > before)


def test_a_server_killed_under_load_loses_nothing(repository: Path) -> None:
    arguments = ("--repository", str(repository), "--log-level", "error", "--workers", "1")
    with ExitStack() as stack:
        (first, process), (second, _) = (stack.enter_context(running_server(*arguments)) for _ in range(2))
        client = stack.enter_context(Client([first, second]))
        expected = client.explain(PICTURES)
        asked, failures = Counter(), []

        def ask(worker: int) -> None:
            while not over.is_set():
                number = (asked.total() + worker) % len(PICTURES)
                try:
                    assert client.explain(PICTURES[number]) == [expected[number]]
                    asked[process.poll()] += 1
                except ServerError as error:
                    failures.append(error)

        over = threading.Event()
        with ThreadPoolExecutor(4) as pool:
            working = [pool.submit(ask, worker) for worker in range(4)]
            time.sleep(0.7)
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            time.sleep(0.7)
            over.set()
            for one in working:
                one.result(10)
    assert failures == []
    assert asked[None] > 20
    assert asked[-signal.SIGKILL] > 20


@both
def test_health_says_what_the_server_says(ask: Ask) -> None:
    with fake_server(echo) as fake:
        assert ask(fake.address, "health") is Health.SERVING
        fake.say(NOT_SERVING)
        assert ask(fake.address, "health") is Health.NOT_SERVING
        with pytest.raises(ServerError) as caught:
            ask(fake.address, "health", "nothing.like.it")
    assert (caught.value.code, caught.value.tries) == (grpc.StatusCode.NOT_FOUND, 1)


@both
def test_a_real_server_is_ready_at_once(ask: Ask, address: str) -> None:
    assert ask(address, "health") is Health.SERVING
    assert ask(address, "health", "pellucid.v1.ExplainService") is Health.SERVING
    assert ask(address, "wait_until_ready", 5) is None


@both
def test_waiting_ends_when_a_server_that_starts_late_is_serving(ask: Ask) -> None:
    with fake_server(echo) as fake:
        address = fake.address
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, address, "wait_until_ready", 10)
        time.sleep(0.3)
        with fake_server(echo, address=address) as late:
            late.say(NOT_SERVING)
            time.sleep(0.3)
            assert not waiting.done()
            late.say(health_pb2.HealthCheckResponse.SERVING)
            assert waiting.result(10) is None


@both
def test_waiting_in_vain_says_what_was_heard_last(ask: Ask) -> None:
    with fake_server(echo) as fake:
        fake.say(NOT_SERVING)
        with pytest.raises(ServerError, match=r"ready after 0\.3 s; it says NOT_SERVING$") as caught:
            ask(fake.address, "wait_until_ready", 0.3)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(ServerError, match=rf"no server at {fake.address} is ready after 0\.3 s; UNAVAILABLE"):
        ask(fake.address, "wait_until_ready", 0.3)


@both
def test_several_channels_are_several_connections(ask: Ask) -> None:
    with fake_server(echo) as fake:
        many(ask, fake.address, 12, channels=3)
        assert sorted(Counter(fake.peers).values()) == [4, 4, 4]
        fake.peers.clear()
        many(ask, fake.address, 12)
        assert len(set(fake.peers)) == 1


@both
def test_metadata_goes_with_every_call_and_the_client_says_who_it_is(ask: Ask) -> None:
    with fake_server(echo) as fake:
        client = {"metadata": [("authorization", "Bearer x"), ("trace-bin", b"\x00\xff")]}
        client["compression"] = grpc.Compression.Gzip
        ask(fake.address, "explain", [b"1", b"2"], client=client)
        (metadata,) = fake.metadata
    assert metadata["authorization"] == "Bearer x"
    assert metadata["trace-bin"] == b"\x00\xff"
    assert metadata["user-agent"].startswith("pellucid-python/")
    assert [len(request.encoded_images) for request in fake.requests] == [2]


@both
def test_with_credentials_the_connection_is_tls_and_strangers_are_not_trusted(ask: Ask, tmp_path: Path) -> None:
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*command.split(), "-keyout", "key", "-out", "crt"], cwd=tmp_path, check=True, capture_output=True)
    key, certificate = (tmp_path / "key").read_bytes(), (tmp_path / "crt").read_bytes()
    with fake_server(echo, credentials=grpc.ssl_server_credentials([(key, certificate)])) as fake:
        named = fake.address.replace("127.0.0.1", "localhost")
        trusting = {"credentials": grpc.ssl_channel_credentials(certificate)}
        assert [answer.width for answer in ask(named, "explain", b"4", client=trusting)] == [4]
        assert [answer.width for answer in ask([named, named], "explain", b"4", client=trusting)] == [4]
        for stranger in ({"credentials": grpc.ssl_channel_credentials()}, {}):
            with pytest.raises(ServerError) as caught:
                ask(named, "explain", b"4", client=stranger | {"retries": 0})
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert len(fake.requests) == 2


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("localhost", {}, "target: 'localhost' is no address of a server; expected \"HOST:PORT\""),
        ("", {}, "target: '' is no address"),
        ([], {}, "target: '' is no address"),
        ("http://localhost:50051", {}, "is no address"),
        (["127.0.0.1:1", "two"], {}, "target: 'two' is no address"),
        ("a:1", {"timeout_seconds": 0}, "timeout_seconds: is 0; expected more than 0"),
        ("a:1", {"retries": -1}, "retries: is -1; expected 0 or more"),
        ("a:1", {"channels": 0}, "channels: is 0; expected 1 or more"),
        ("a:1", {"keepalive_seconds": 3}, "keepalive_seconds: is 3; expected 0, or 10 or more"),
    ],
)
def test_what_is_no_target_or_out_of_range_is_said_at_once(
    kind: type, target: object, options: dict[str, float], words: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        kind(target, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("target", ["[::1]:50051", "dns:///svc.local:50051", "unix:/run/pellucid", "xds:///svc"])
def test_every_kind_of_name_that_grpc_knows_is_a_target(target: str) -> None:
    assert Connection(target).addresses == (target,)


def test_a_host_of_several_that_has_no_address_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"target: 'nowhere\.invalid:1' has no address"):
        Client(["127.0.0.1:1", "nowhere.invalid:1"])


def test_a_client_with_keepalive_asks_a_silent_server() -> None:
    with fake_server(echo) as fake, Client(fake.address, keepalive_seconds=10) as client:
        assert client.explain(b"3")[0].width == 3


@both
def test_a_server_that_is_not_there_is_named_with_how_to_start_one(ask: Ask) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerError) as caught:
            ask(target, "explain", b"1", client={"retries": 1})
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert str(caught.value).startswith(f"UNAVAILABLE: no answer from {target} (")
    assert "Connection refused" in str(caught.value)
    assert "`pellucid-serve --repository models` starts one" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("listed", "explained"),
    [(ConnectionOptions, Connection), (ExplainOptions, explain_request), (WhatIfOptions, what_if_request)],
)
def test_what_may_be_passed_on_is_what_there_is(listed: type, explained: object) -> None:
    there = set(inspect.signature(explained).parameters) - {"target", "images", "image", "changes"}
    assert set(listed.__annotations__) == there
