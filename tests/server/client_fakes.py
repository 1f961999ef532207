"""Servers that misbehave to order, and clients of both kinds asked in one way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from pellucid.v1 import explain_pb2 as pb
from server.client import AsyncClient, Client
from server.errors import DETAILS_KEY, OverloadedError, failure_of

Behaviour = Callable[[pb.ExplainRequest, grpc.ServicerContext], pb.ExplainResponse]


@dataclass
class Fake:
    """A server in this process.

    Attributes:
        address: "HOST:PORT".
        server: gRPC's.
        health: what it says of itself; SERVING at first.
        requests: what came, in order.
        times: when.
        peers: over which connections.
        metadata: with what.
    """

    address: str
    server: grpc.Server
    health: health.HealthServicer
    requests: list[pb.ExplainRequest] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)

    def say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        """Change what the server says of itself."""
        self.health.set("", status)


@contextmanager
def fake_server(
    behaviour: Behaviour,
    *,
    address: str = "127.0.0.1:0",
    threads: int = 16,
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[Fake]:
    """Run a server whose Explain does this."""

    def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
        request = pb.ExplainRequest.FromString(data)
        fake.times.append(time.monotonic())
        fake.requests.append(request)
        fake.peers.append(context.peer())
        fake.metadata.append(dict(context.invocation_metadata()))
        return behaviour(request, context).SerializeToString()

    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(threads), options=options)
    handlers = {"Explain": grpc.unary_unary_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("pellucid.v1.ExplainService", handlers),))
    # A blocking Watch would hold a thread as long as a client watches.
    healthy = health.HealthServicer(experimental_non_blocking=True)
    healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    fake = Fake(f"127.0.0.1:{port}", server, healthy)
    server.start()
    try:
        yield fake
    finally:
        server.stop(0).wait(10)


def echo(request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
    """Answer each picture, a number as text, with an Explanation of that width."""
    return pb.ExplainResponse(explanations=[pb.Explanation(width=int(one)) for one in request.encoded_images])


def failing(times: int, code: grpc.StatusCode) -> Behaviour:
    """Fail so many times with a status, then answer with one Explanation."""
    left = iter(range(times))

    def behave(request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        if next(left, None) is not None:
            context.abort(code, "not now")
        return pb.ExplainResponse(explanations=[pb.Explanation(width=7)])

    return behave


def overloaded(times: int, retry_seconds: float) -> Behaviour:
    """Shed so many requests as our server does, then answer with one Explanation."""
    left = iter(range(times))

    def behave(request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        if next(left, None) is not None:
            failure = failure_of(OverloadedError(retry_seconds, "too much to do"))
            context.set_trailing_metadata(((DETAILS_KEY, failure.details),))
            context.abort(failure.code, failure.text)
        return pb.ExplainResponse(explanations=[pb.Explanation(width=7)])

    return behave


Ask = Callable[..., Any]


def blocking(target: object, verb: str, *arguments: object, client: dict[str, Any] | None = None, **options: object):  # noqa: ANN201 (whatever the verb answers)
    """Ask with a Client."""
    with Client(target, **(client or {})) as asking:
        answer = getattr(asking, verb)(*arguments, **options)
        return list(answer) if isinstance(answer, Iterator) else answer


def awaited(target: object, verb: str, *arguments: object, client: dict[str, Any] | None = None, **options: object):  # noqa: ANN201 (whatever the verb answers)
    """Ask with an AsyncClient."""

    async def ask() -> object:
        async with AsyncClient(target, **(client or {})) as asking:
            answer = getattr(asking, verb)(*arguments, **options)
            return [one async for one in answer] if isinstance(answer, AsyncIterator) else await answer

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [blocking, awaited], ids=["blocking", "awaited"])
