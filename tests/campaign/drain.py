"""Drain: SIGTERM with a thousand calls in flight; every one of them is answered."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as oip

from tests.campaign import requests
from tests.campaign.fuzz import STREAM
from tests.campaign.models import slowed
from tests.campaign.outcome import Outcome, outcome
from tests.campaign.serving import Served, served
from tests.campaign.wire import EXPLAIN, HEALTH, OIP, OPTIONS, Reply, aio_channel, ask, ask_aio, failed

MAX_IDLE_SECONDS = 5.0  # from the last answer, or the closing of the port, to the exit
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNARY = (
    (EXPLAIN + "Explain", requests.explain().SerializeToString()),
    (OIP + "ModelInfer", requests.floats().SerializeToString()),
)


@dataclass
class Flight:
    """Calls that are under way.

    Attributes:
        expected: how many answers there must be in the end.
        codes: what the answers were.
        last: when the last of them came, in seconds of time.monotonic.
    """

    expected: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    last: float = 0.0

    def came(self, code: str) -> None:
        """Count one answer."""
        self.codes[code] += 1
        self.last = time.monotonic()

    def in_flight(self) -> int:
        """Return how many are not answered yet."""
        return self.expected - self.codes.total()


async def _unary(channel: grpc.aio.Channel, number: int, flight: Flight) -> None:
    method, data = UNARY[number % len(UNARY)]
    flight.came((await ask_aio(channel, method, data, 120)).code.name)


async def _stream(channel: grpc.aio.Channel, count: int, flight: Flight) -> None:
    """Send `count` requests on one stream and count its answers; what is missing counts as LOST."""
    came = 0

    async def messages() -> AsyncIterator[bytes]:
        for number in range(count):
            yield requests.floats(id=str(number)).SerializeToString()

    try:
        async for data in channel.stream_stream(STREAM)(messages(), timeout=120):
            answer = oip.ModelStreamInferResponse.FromString(data)
            right = not answer.error_message and answer.infer_response.id == str(came)
            flight.came("OK" if right else f"ERROR {answer.error_message[:40]}")
            came += 1
    except grpc.aio.AioRpcError as error:
        flight.codes[error.code().name] += count - came
    else:
        flight.codes["LOST"] += count - came


async def _fly(address: str, unary: int, streams: int, per_stream: int, flight: Flight) -> None:
    channels = [aio_channel(address) for _ in range(8)]
    flight.expected = unary + streams * per_stream
    try:
        await asyncio.gather(
            *(_unary(channels[number % 8], number, flight) for number in range(unary)),
            *(_stream(channels[number % 8], per_stream, flight) for number in range(streams)),
        )
    finally:
        for channel in channels:
            await channel.close()


@dataclass
class Watched:
    """When health said NOT_SERVING, and when the port closed; seconds of time.monotonic, 0 for never."""

    not_serving: float = 0.0
    closed: float = 0.0


@contextmanager
def watching(address: str) -> Iterator[Watched]:
    """Watch health and the port of a server while the body runs."""
    seen, done = Watched(), threading.Event()

    def health() -> None:
        with grpc.insecure_channel(address, OPTIONS) as channel:
            watch = channel.unary_stream(HEALTH + "Watch")(b"", timeout=120)
            try:
                for data in watch:
                    status = health_pb2.HealthCheckResponse.FromString(data).status
                    if status == NOT_SERVING and not seen.not_serving:
                        seen.not_serving = time.monotonic()
            except grpc.RpcError:
                return

    def port() -> None:
        host, _, number = address.rpartition(":")
        while not done.wait(0.02):
            try:
                socket.create_connection((host, int(number)), 1).close()
            except OSError:
                seen.closed = time.monotonic()
                return

    threads = [threading.Thread(target=health), threading.Thread(target=port)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in threads:
            thread.join(130)


def _late(address: str) -> Reply:
    """Ask on a new connection."""
    with grpc.insecure_channel(address, OPTIONS) as channel:
        try:
            return ask(channel, EXPLAIN + "ListModels", b"", 5)
        except grpc.RpcError as error:
            return failed(error)


def drain(count: int = 1000, products: int = 8, grace_seconds: float = 60) -> Outcome:
    """Send SIGTERM while `count` calls and more are in flight, half of them on streams.

    Args:
        count: calls in flight.
        products: how slow the model is; each takes about 1.2 ms.
        grace_seconds: how long the server may take for them.
    """
    streams = 10
    sent = count + max(100, count // 5)  # some are answered before the signal, more of them where we are held up
    options = (
        "--max-queue=8192",
        "--max-requests=8192",
        f"--grace-seconds={grace_seconds}",
        "--max-batch=1",
        "--log-level=info",
    )
    flight = Flight()
    with served({"tiny": slowed(products)}, *options) as server, watching(server.address) as seen:
        flying = threading.Thread(
            target=lambda: asyncio.run(_fly(server.address, sent // 2, streams, sent // 2 // streams, flight))
        )
        flying.start()
        _wait_for(flight, sent // 20)
        in_flight, asked = flight.in_flight(), time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        late = _after_closing(server, seen)
        flying.join(150)
        code = server.process.wait(120)
        ended = time.monotonic()
        problems = server.faults()
    problems += [f"{number} calls ended {code}" for code, number in flight.codes.items() if code != "OK" and number]
    idle = ended - max(flight.last, seen.closed)
    problems += [f"it went on for {idle:.1f} s after the last answer"] if idle > MAX_IDLE_SECONDS else []
    problems += [f"the exit code is {code}"] if code else []
    problems += [] if in_flight >= count else [f"only {in_flight} calls were in flight"]
    problems += [] if 0 < seen.not_serving < seen.closed else ["health did not turn NOT_SERVING before the port closed"]
    problems += [] if late.code is grpc.StatusCode.UNAVAILABLE else [f"a late call is {late.code.name}"]
    return outcome(
        "drain",
        {"in_flight": in_flight, "sent": flight.expected, "answered": flight.codes["OK"], "exit_code": code},
        {
            "NOT_SERVING_ms": 1000 * (seen.not_serving - asked),
            "port_closed_ms": 1000 * (seen.closed - asked),
            "last_answer_s": flight.last - asked,
            "exit_s": ended - asked,
        },
        "every call in flight answered OK, exit code 0, NOT_SERVING first, late calls UNAVAILABLE",
        problems,
    )


def _wait_for(flight: Flight, answers: int) -> None:
    """Wait until so many calls are answered, which says that the others have arrived."""
    for _ in range(3000):
        if flight.codes.total() >= answers:
            return
        time.sleep(0.005)


def _after_closing(server: Served, seen: Watched) -> Reply:
    """Wait until the port has closed, then call."""
    for _ in range(1000):
        if seen.closed or server.process.poll() is not None:
            break
        time.sleep(0.02)
    return _late(server.address)
