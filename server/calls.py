"""What every call passes, whatever it asks: it gets a name, is let in or not, is counted, traced and logged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import grpc

from server.authorise import Authoriser, certificate_names
from server.call import REQUEST_ID_KEY, Call, Metadata, begin_call
from server.edge import abort
from server.errors import INTERNAL_TEXT, failure_of
from server.logs import AccessLog
from server.statistics import Histogram

log = logging.getLogger("pellucid.server")

Context = grpc.aio.ServicerContext[bytes, bytes]
Behaviour = Callable[[Any, Context], Awaitable[Any]]
Handlers = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
Watched = Callable[[str, Handlers], "dict[str, grpc.RpcMethodHandler[Any, Any]]"]


class Tracer(Protocol):
    """Decides which calls are traced, and takes them when they are over."""

    def parent(self, metadata: Metadata) -> object | None:
        """Return what the span of a call with this metadata belongs to, or None where it is not to be traced."""

    def over(self, call: Call, began: float, ended: float, code: grpc.StatusCode) -> None:
        """Take a traced call that began and ended at these seconds of `time.monotonic`."""


class Calls:
    """Watches the calls of services; lives on one event loop, may be read from any thread.

    Args:
        authoriser: who decides whether a call is answered; None where anybody may ask.
        access_log: gets a line for each call.
        tracer: gets those that are traced; None where none is.

    Attributes:
        codes: calls that are over, by method and status.
        seconds: how long they took, by method.
        refused: errors that clients got, those in streams included, by reason.
    """

    def __init__(
        self, authoriser: Authoriser | None = None, access_log: AccessLog | None = None, tracer: Tracer | None = None
    ) -> None:
        self.codes: Counter[tuple[str, str]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self.refused: Counter[str] = Counter()
        self._authoriser = authoriser
        self._access_log = access_log or AccessLog(logging.DEBUG)
        self._tracer = tracer

    def watched(self, service: str, handlers: Handlers) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Return a service's handlers, each behind all of this; only these become labels of metrics."""
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
        seconds = self.seconds.setdefault(name, Histogram())
        method, tracer = f"/{service}/{name}", self._tracer

        async def handle(request: Any, context: Context) -> Any:  # noqa: ANN401 (bytes, or a stream of them)
            began, code = time.monotonic(), grpc.StatusCode.OK
            metadata: Any = context.invocation_metadata() or ()
            call = begin_call(method, metadata, self.refused)
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            if tracer is not None:
                call.parent = tracer.parent(metadata)
            try:
                if self._authoriser is not None:
                    await self._let_in(self._authoriser, call, metadata, context)
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
                self._access_log.note(call, code.name, ended - began, context)

        return handle

    async def _let_in(self, authoriser: Authoriser, call: Call, metadata: Metadata, context: Context) -> None:
        try:
            call.caller = authoriser.caller(call.method, metadata, lambda: certificate_names(context.auth_context()))
        except Exception as error:  # whatever it is, nobody is let in
            failure = failure_of(error)
            if failure.text == INTERNAL_TEXT:
                log.exception("who calls could not be found out")
            await abort(context, failure)


def unwatched(service: str, handlers: Handlers) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Return a service's handlers as they are."""
    return dict(handlers)


def _status(error: BaseException, context: Context) -> grpc.StatusCode:
    """Return how a call ended that ended with an error, UNKNOWN where the edge let something through."""
    if isinstance(error, asyncio.CancelledError):
        left = context.time_remaining()
        late = left is not None and left <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    code = context.code()
    numbers = {status.value[0]: status for status in grpc.StatusCode}
    found = code if isinstance(code, grpc.StatusCode) else numbers.get(code)
    return grpc.StatusCode.UNKNOWN if found in (None, grpc.StatusCode.OK) else found
