"""The gRPC edge: bytes to messages, deadlines, admission; errors become statuses here alone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from analyzers.errors import InvalidInputError
from server.call import REQUEST_ID_KEY, current_call, refused
from server.deadline import within
from server.errors import DETAILS_KEY, INTERNAL_TEXT, Failure, OverloadedError, StoppingError, failure_of

log = logging.getLogger("pellucid.server")

CROWDED_SECONDS = 0.1
LARGE_BYTES = 1 << 20  # parsing more than this would hold up the others for milliseconds

Context = grpc.aio.ServicerContext[bytes, bytes]
Request = TypeVar("Request", bound=Message)
Answer = Message | bytes


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What may be under way at a time.

    Attributes:
        max_requests: calls, streams included.
        max_bytes: of all their requests together.
        max_seconds: one call but a stream.
        quiet_seconds: a stream that says nothing for so long is over, once the server stops.
    """

    max_requests: int
    max_bytes: int
    max_seconds: float
    quiet_seconds: float


class Gate:
    """Counts what is under way; lives on one event loop.

    Attributes:
        limits: what may be under way.
        stopping: set when the server is about to stop.
        idle: set while nothing is under way.
    """

    def __init__(self, limits: GateLimits) -> None:
        self.limits = limits
        self.stopping = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self._requests = 0
        self._bytes = 0
        self._last_single = -CROWDED_SECONDS

    def crowded(self) -> bool:
        """Whether calls with one request each come beside streams, or did a moment ago."""
        return time.monotonic() - self._last_single < CROWDED_SECONDS

    @property
    def requests(self) -> int:
        """How many calls are under way, streams and their requests included."""
        return self._requests

    @contextmanager
    def admit(self, size: int, *, single: bool = False) -> Iterator[None]:
        """Count a call of so many bytes while it is under way, a single one or one of a stream.

        Raises:
            OverloadedError: too many are.
        """
        if self._requests >= self.limits.max_requests:
            raise OverloadedError(0.1, f"{self._requests} calls are under way already; try again later")
        if self._bytes and self._bytes + size > self.limits.max_bytes:
            raise OverloadedError(0.1, f"calls of {self._bytes} bytes are under way already; try again later")
        self._requests += 1
        self._bytes += size
        if single:
            self._last_single = time.monotonic()
        self.idle.clear()
        try:
            yield
        finally:
            self._requests -= 1
            self._bytes -= size
            if not self._requests:
                self.idle.set()

    async def until_stopping(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield a stream's messages; once the server stops, only those that are on their way already.

        Raises:
            StoppingError: the server stops, and everything that came has been yielded.
        """
        stopping = asyncio.ensure_future(self.stopping.wait())
        message: asyncio.Task[bytes | None] | None = None
        try:
            while True:
                message = asyncio.create_task(_next(messages))
                await asyncio.wait({message, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not message.done():
                    await asyncio.wait({message}, timeout=self.limits.quiet_seconds)
                if not message.done():
                    raise StoppingError("the server is stopping; what it received is answered, send the rest again")
                if (data := message.result()) is None:
                    return
                yield data
        finally:
            stopping.cancel()
            if message is not None:
                message.cancel()


async def _next(messages: AsyncIterator[bytes]) -> bytes | None:
    return await anext(messages, None)


def unary(
    request_type: type[Request], method: Callable[[Request], Awaitable[Answer]], gate: Gate
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """Wrap a method from message to message; bytes are parsed here, since gRPC would answer malformed ones UNKNOWN."""

    async def handle(data: bytes, context: Context) -> bytes:
        try:
            left = context.time_remaining()
            with gate.admit(len(data), single=True):
                async with within(min(gate.limits.max_seconds, gate.limits.max_seconds if left is None else left)):
                    return _bytes(await method(await parse(request_type, data)))
        except Exception as error:
            await abort(context, _explained(error, request_type))
            raise AssertionError from error  # abort always raises; this tells the type checker so

    return grpc.unary_unary_rpc_method_handler(handle)


def streaming(
    request_type: type[Message], method: Callable[[AsyncIterator[bytes]], AsyncGenerator[Answer]], gate: Gate
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """Wrap a method from a stream of serialised messages to a stream of messages."""

    async def handle(messages: AsyncIterator[bytes], context: Context) -> None:
        try:
            with gate.admit(0):
                async with aclosing(method(gate.until_stopping(aiter(messages)))) as answers:
                    async for answer in answers:
                        await context.write(_bytes(answer))
        except grpc.aio.InternalError:
            return  # whoever asked has gone in the middle of an answer
        except Exception as error:
            await abort(context, _explained(error, request_type))

    return grpc.stream_stream_rpc_method_handler(handle)


async def parse(request_type: type[Request], data: bytes) -> Request:
    """Parse a message, a large one in another thread.

    Raises:
        DecodeError: these bytes are no such message.
    """
    if len(data) < LARGE_BYTES:
        return request_type.FromString(data)
    return await asyncio.to_thread(request_type.FromString, data)


async def abort(context: grpc.aio.ServicerContext[Any, Any], failure: Failure) -> None:
    """End a call with a status, its sentence and its details."""
    refused(failure.reason)
    call = current_call()
    named = () if call is None else ((REQUEST_ID_KEY, call.request_id),)
    await context.abort(failure.code, failure.text, ((DETAILS_KEY, failure.details), *named))


def _bytes(answer: Answer) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def _explained(error: Exception, request_type: type[Message]) -> Failure:
    if isinstance(error, DecodeError):
        name = request_type.DESCRIPTOR.full_name
        return failure_of(InvalidInputError("request", f"is not a {name}; its bytes cannot be parsed"))
    failure = failure_of(error)
    if failure.text == INTERNAL_TEXT:
        log.error("%s failed", request_type.DESCRIPTOR.name, exc_info=error)
    return failure
