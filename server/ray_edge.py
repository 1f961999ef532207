"""What runs in Ray Serve's proxies: calls go to replicas as bytes with the time they have left, failures become ours.

Ray puts its own behaviour, which sends a request to a replica, in the place of each handler that a servicer function
registers. It keeps our generic handler around them, and here is the place for what its behaviour leaves out: the
deadline, google.rpc details, and a status that says "send it again" where a replica died.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from pellucid.v1 import explain_pb2 as pb
from server.edge import Gate, GateLimits
from server.errors import DETAILS_KEY, ExpiredError, OverloadedError, StoppingError, UnsupportedError, failure_of
from server.health import SERVICE as HEALTH
from server.oip_messages import FILE as OPEN_INFERENCE
from server.reflection import add_reflection

log = logging.getLogger("pellucid.ray")

SERVICER_FUNCTION = "server.ray_edge.add_services"
"""For `grpc_servicer_functions` of Ray Serve's `grpc_options`."""

IN_A_STREAM = 32  # requests that have no answer yet or whose answer is not read yet; the replica works on half of them
REFLECTION_LIMITS = GateLimits(max_requests=64, max_bytes=1 << 20, max_seconds=10, quiet_seconds=0)

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way from a proxy to a replica.

    Attributes:
        method: "/SERVICE/METHOD".
        data: the message as it came.
        seconds: what was left of the caller's deadline when it came; None without one.
    """

    method: str
    data: bytes
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Details(grpc.HandlerCallDetails):
    """What a handler is looked up by."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()


Routed = Callable[[Call, Context], Awaitable[bytes]]
RoutedStream = Callable[[AsyncIterator[bytes], Context], AsyncGenerator[bytes]]


class Handlers:
    """Stands where a server is expected, and keeps what is registered with it."""

    def __init__(self) -> None:
        self._generic: list[grpc.GenericRpcHandler] = []

    @property
    def server(self) -> grpc.aio.Server:
        """This, as those who only register handlers want it."""
        return cast("grpc.aio.Server", self)

    def add_generic_rpc_handlers(self, generic: Sequence[grpc.GenericRpcHandler]) -> None:
        """Keep handlers."""
        self._generic.extend(generic)

    def find(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return who answers a method, or None."""
        found = (handler.service(details) for handler in self._generic)
        return next((handler for handler in found if handler is not None), None)


class _Routed(grpc.GenericRpcHandler):
    """The methods of a service that replicas answer.

    Args:
        service: its full name.
        methods: whether each of its methods is a stream both ways; otherwise it has one request and one answer.
    """

    def __init__(self, service: str, methods: dict[str, bool]) -> None:
        # Ray looks for this name and puts handlers of its own into it.
        self._method_handlers = {f"/{service}/{name}": _unrouted(streams) for name, streams in methods.items()}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = self._method_handlers.get(details.method)
        if handler is None:
            return None
        # gRPC's types describe blocking servers; a proxy's is grpc.aio's.
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(partial(_stream, cast("RoutedStream", handler.stream_stream)))
        return grpc.unary_unary_rpc_method_handler(partial(_call, details.method, cast("Routed", handler.unary_unary)))


class _Local(grpc.GenericRpcHandler):
    """Methods that a proxy answers itself."""

    def __init__(self, handlers: Handlers) -> None:
        self._method_handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}  # nothing for Ray to replace
        self._handlers = handlers

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.find(details)


def add_services(_: object, server: grpc.aio.Server) -> None:
    """Register everything with a proxy of Ray Serve, which calls this itself."""
    explain = pb.DESCRIPTOR.services_by_name["ExplainService"]
    inference = OPEN_INFERENCE.services_by_name["GRPCInferenceService"]
    routed = {service.full_name: _methods(service) for service in (explain, inference)}
    for name, methods in (routed | {HEALTH: {"Check": False}}).items():
        server.add_generic_rpc_handlers((_Routed(name, methods),))
    here = Handlers()
    add_reflection(here.server, (*routed, HEALTH), Gate(REFLECTION_LIMITS))
    server.add_generic_rpc_handlers((_Local(here),))


def _methods(service: ServiceDescriptor) -> dict[str, bool]:
    return {method.name: method.client_streaming for method in service.methods}


def _unrouted(streams: bool) -> grpc.RpcMethodHandler[bytes, bytes]:
    """Return what Ray is to replace; where it does not, each call says so."""

    async def refuse(_: object, context: Context) -> None:
        failure = failure_of(UnsupportedError("this version of Ray Serve does not route calls as version 2.60 does"))
        await context.abort(failure.code, failure.text, ((DETAILS_KEY, failure.details),))

    return (grpc.stream_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler)(refuse)


async def _call(method: str, routed: Routed, data: bytes, context: Context) -> bytes:
    answer = await routed(Call(method, data, context.time_remaining()), context)
    _translate(context)
    return answer


async def _stream(routed: RoutedStream, messages: AsyncIterator[bytes], context: Context) -> AsyncGenerator[bytes]:
    """Pass a stream on; a client that does not read its answers is not read from either, which Ray would do."""
    room = asyncio.Semaphore(IN_A_STREAM)

    async def admitted() -> AsyncGenerator[bytes]:
        async for message in messages:
            await room.acquire()
            yield message

    async for answer in routed(admitted(), context):
        if answer:  # an empty one only carries the status
            yield answer
            room.release()
    _translate(context)


def _translate(context: Context) -> None:
    """Put a status of ours in the place of one of Ray's, whose text may hold a stack trace and a host's address."""
    code = context.code() or grpc.StatusCode.OK  # 0 where nobody has set one
    if code is grpc.StatusCode.OK or any(key == DETAILS_KEY for key, _ in context.trailing_metadata() or ()):
        return
    log.warning("a call ended with status of Ray's, %s: %.300s", code.name, " ".join(str(context.details()).split()))
    failure = failure_of(_error(code))
    context.set_code(failure.code)
    context.set_details(failure.text)
    context.set_trailing_metadata(((DETAILS_KEY, failure.details),))


def _error(code: grpc.StatusCode) -> Exception:
    """Return what a status means that no replica has given: nothing of it is about the request itself."""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return OverloadedError(0.1, "as many calls as may wait for a replica already; try again later")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ExpiredError("no replica answered within the time that the proxy gives a call")
    return StoppingError("no replica answered: the one that had the call is gone, or there is none; send it again")
