"""Calls: counted by method and status, known to whatever works for them, and handed to whoever traces them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from server.statistics import Histogram

MAX_STAGES = 64  # of a traced call; a stream may have any number of requests

Context = grpc.aio.ServicerContext[bytes, bytes]
Behaviour = Callable[[Any, Context], Awaitable[Any]]
Handlers = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a call.

    Attributes:
        name: decode, queue, run or encode.
        began: in seconds of `time.monotonic`.
        ended: the same.
        numbers: what is worth knowing of it.
    """

    name: str
    began: float
    ended: float
    numbers: Mapping[str, int]


@dataclass(eq=False, slots=True)
class Call:
    """A call that is being answered.

    Attributes:
        method: "SERVICE/METHOD".
        refused: counts refusals by reason.
        parent: whose span its own belongs to; None where it is not traced.
        request_id: what the client calls it, "" for nothing.
        model: that answers, "" where none does.
        version: of it.
        stages: what was done for it, in any order; only where it is traced.
    """

    method: str
    refused: Counter[str]
    parent: object = None
    request_id: str = ""
    model: str = ""
    version: str = ""
    stages: list[Stage] = field(default_factory=list)

    def stage(self, name: str, began: float, ended: float, **numbers: int) -> None:
        """Remember a part of it; any thread may say so."""
        if len(self.stages) < MAX_STAGES:
            self.stages.append(Stage(name, began, ended, numbers))


_call: ContextVar[Call | None] = ContextVar("call", default=None)


def traced() -> Call | None:
    """Return the call that is being answered if it is traced."""
    call = _call.get()
    return call if call is not None and call.parent is not None else None


def refused(reason: str) -> None:
    """Count an error that a client gets, by the reason in its details."""
    if (call := _call.get()) is not None:
        call.refused[reason] += 1


class Tracer(Protocol):
    """Decides which calls are traced, and takes them when they are over."""

    def parent(self, metadata: Metadata) -> object | None:
        """Return what the span of a call with this metadata belongs to, or None where it is not to be traced."""

    def over(self, call: Call, began: float, ended: float, code: grpc.StatusCode) -> None:
        """Take a traced call that began and ended at these seconds of `time.monotonic`."""


class Calls:
    """Watches the calls of services; lives on one event loop, may be read from any thread.

    Attributes:
        codes: calls that are over, by method and status.
        seconds: how long they took, by method.
        refused: errors that clients got, those in streams included, by reason.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self.codes: Counter[tuple[str, str]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self.refused: Counter[str] = Counter()
        self._tracer = tracer

    def watched(self, service: str, handlers: Handlers) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Return a service's handlers, each of which says when a call begins and ends; only these become labels."""
        return {name: self._watched(service, name, handler) for name, handler in handlers.items()}

    def _watched(
        self, service: str, name: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        behaviour: Any = handler.stream_stream if handler.request_streaming else handler.unary_unary
        made = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return made(self._around(service, name, behaviour))

    def _around(self, service: str, name: str, behaviour: Behaviour) -> Behaviour:
        seconds = self.seconds[name] = Histogram()
        method, tracer = f"{service}/{name}", self._tracer

        async def handle(request: Any, context: Context) -> Any:  # noqa: ANN401 (bytes, or an iterator of them)
            began, code = time.monotonic(), grpc.StatusCode.OK
            call = Call(method, self.refused)
            if tracer is not None:
                metadata: Any = context.invocation_metadata() or ()
                if (parent := tracer.parent(metadata)) is not None:
                    call.parent, call.request_id = parent, _request_id(metadata)
            _call.set(call)
            try:
                return await behaviour(request, context)
            except BaseException as error:
                code = _status(error, context)
                raise
            finally:
                ended = time.monotonic()
                self.codes[name, code.name] += 1
                seconds.add(ended - began)
                if tracer is not None and call.parent is not None:
                    tracer.over(call, began, ended, code)

        return handle


def unwatched(service: str, handlers: Handlers) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Return a service's handlers as they are."""
    return dict(handlers)


def _status(error: BaseException, context: Context) -> grpc.StatusCode:
    """Return how a call ended that ended with an error."""
    if isinstance(error, asyncio.CancelledError):
        left = context.time_remaining()
        late = left is not None and left <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    code = context.code()
    numbers = {status.value[0]: status for status in grpc.StatusCode}
    found = code if isinstance(code, grpc.StatusCode) else numbers.get(code)
    return grpc.StatusCode.UNKNOWN if found in (None, grpc.StatusCode.OK) else found


def _request_id(metadata: Metadata) -> str:
    """Return the request's id from its metadata, "" where there is none; a long one is cut."""
    found = next((value for key, value in metadata if key == "x-request-id"), "")
    return found[:128] if isinstance(found, str) else ""
