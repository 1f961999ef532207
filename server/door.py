"""What every call passes, whatever it asks: it gets a name, is let in or not, and leaves a line in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from server.authorise import Authoriser, certificate_names
from server.call import REQUEST_ID_KEY, Call, begin_call
from server.edge import abort
from server.errors import INTERNAL_TEXT, failure_of
from server.logs import AccessLog

log = logging.getLogger("pellucid.server")

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
    Body = Callable[[Any, Context], Awaitable[Any]]


class Door(grpc.aio.ServerInterceptor):
    """Wraps each handler once, when it is first called.

    Args:
        authoriser: who decides; None where anybody may.
        access_log: gets a line for each call.
    """

    def __init__(self, authoriser: Authoriser | None, access_log: AccessLog) -> None:
        self._authoriser = authoriser
        self._access_log = access_log
        self._handlers: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the handler of a method; of one that is not there gRPC says so itself."""
        method: str = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            handler = await continuation(handler_call_details)
            if handler is not None:
                handler = self._handlers[method] = self._wrapped(method, handler)
        return handler

    def _wrapped(self, method: str, handler: Handler) -> Handler:
        body: Any = handler.unary_unary  # or a stream of both, the edge has no others
        if body is not None:
            return grpc.unary_unary_rpc_method_handler(self._through(method, body))
        body = handler.stream_stream
        return grpc.stream_stream_rpc_method_handler(self._through(method, body))

    def _through(self, method: str, body: Body) -> Body:
        async def handle(request: Any, context: Context) -> Any:  # noqa: ANN401 (bytes, or a stream of them)
            began = perf_counter()
            metadata = context.invocation_metadata() or ()
            call = begin_call(method, metadata)
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            status = "OK"
            try:
                if self._authoriser is not None:
                    await self._let_in(self._authoriser, call, metadata, context)
                return await body(request, context)
            except asyncio.CancelledError:
                status = "CANCELLED"
                raise
            except BaseException:
                status = _status(context)
                raise
            finally:
                self._access_log.note(call, status, perf_counter() - began, context)

        return handle

    async def _let_in(self, authoriser: Authoriser, call: Call, metadata: Any, context: Context) -> None:  # noqa: ANN401
        try:
            call.caller = authoriser.caller(call.method, metadata, lambda: certificate_names(context.auth_context()))
        except Exception as error:  # whatever it is, nobody is let in
            failure = failure_of(error)
            if failure.text == INTERNAL_TEXT:
                log.exception("who calls could not be found out")
            await abort(context, failure)


def _status(context: Context) -> str:
    """Return the name of the status that a call ended with, UNKNOWN where the edge let something through."""
    code: grpc.StatusCode | int | None = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
