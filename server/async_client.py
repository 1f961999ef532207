"""A client for `asyncio`: the verbs of `Client`, awaited."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

import grpc
import grpc.aio

from analyzers.explanation import Explanation
from analyzers.what_if import Change
from pellucid.v1 import explain_pb2 as pb
from server.channels import DEFAULT_TIMEOUT_SECONDS, Connection, ConnectionOptions
from server.client_batch import OnError, Outcome, Plan, answers_async
from server.client_calls import (
    CALLS,
    EXPLAIN,
    GET_MODEL,
    HEALTH,
    LIST_MODELS,
    WHAT_IF,
    Answer,
    Call,
    ExplainOptions,
    Health,
    Image,
    Request,
    Response,
    WhatIfOptions,
    explain_request,
    what_if_request,
)
from server.client_errors import ServerError
from server.client_progress import Progress
from server.client_retry import CLOSED, READY_POLL_SECONDS, Tries, not_ready

_Method = grpc.aio.UnaryUnaryMultiCallable[Any, Any]


class AsyncClient:
    """Asks servers without holding up the event loop; of one loop, and an async context manager.

    What it takes, returns and raises is what `Client` does. Cancelling a task cancels its call on the server.

    Args:
        target: as `Client` takes it.
        options: as `Client` takes them.

    Raises:
        InvalidInputError: the target is no address, or an option is out of range.
    """

    def __init__(self, target: str | Sequence[str], **options: Unpack[ConnectionOptions]) -> None:
        self._connection = Connection(target, **options)
        self._channels: list[grpc.aio.Channel] = []
        self._methods: dict[str, Iterator[_Method]] = {}
        self._closed = False

    async def explain(
        self,
        images: Image | Sequence[Image],
        *,
        timeout_seconds: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> list[Explanation]:
        """Predict and explain pictures, all in one run of the model; see `Client.explain`."""
        request = await asyncio.to_thread(explain_request, images, **options)  # it reads files and copies arrays
        return await self._call(EXPLAIN, request, timeout_seconds)

    @overload
    def explain_many(
        self,
        pictures: Iterable[Image] | AsyncIterable[Image],
        *,
        batch: int = 8,
        concurrency: int = 4,
        on_error: Literal["raise"] = "raise",
        progress: Progress = False,
        timeout_seconds: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> AsyncIterator[Explanation]: ...

    @overload
    def explain_many(
        self,
        pictures: Iterable[Image] | AsyncIterable[Image],
        *,
        batch: int = 8,
        concurrency: int = 4,
        on_error: Literal["return"],
        progress: Progress = False,
        timeout_seconds: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> AsyncIterator[Outcome]: ...

    def explain_many(
        self,
        pictures: Iterable[Image] | AsyncIterable[Image],
        *,
        batch: int = 8,
        concurrency: int = 4,
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout_seconds: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> AsyncIterator[Outcome]:
        """Predict and explain any number of pictures and yield the answers in order; see `Client.explain_many`.

        Pictures may come from an asynchronous source. To leave the loop early and end what is under way at once, put
        the iterator into `contextlib.aclosing`.
        """
        explain_request([], **options)

        async def ask(images: list[Image]) -> list[Explanation]:
            return await self.explain(images, timeout_seconds=timeout_seconds, **options)

        return answers_async(pictures, Plan(batch, concurrency, on_error, progress), ask)

    async def what_if(
        self,
        image: Image,
        *changes: Change,
        timeout_seconds: float | None = None,
        **options: Unpack[WhatIfOptions],
    ) -> pb.WhatIfResponse:
        """Predict one picture and ask what the answer would be if things counted for less or more; see `Client`."""
        request = await asyncio.to_thread(what_if_request, image, changes, **options)
        return await self._call(WHAT_IF, request, timeout_seconds)

    async def list_models(self, *, timeout_seconds: float | None = None) -> list[pb.ModelStatus]:
        """Return the status of every model version; see `Client.list_models`."""
        return await self._call(LIST_MODELS, pb.ListModelsRequest(), timeout_seconds)

    async def get_model(
        self, model: str = "", version: str = "", *, timeout_seconds: float | None = None
    ) -> pb.GetModelResponse:
        """Return what one model takes, knows and can explain; see `Client.get_model`."""
        return await self._call(GET_MODEL, pb.GetModelRequest(model=model, version=version), timeout_seconds)

    async def health(self, service: str = "", *, timeout_seconds: float | None = None) -> Health:
        """Ask once whether the server is ready; see `Client.health`."""
        return await self._call(HEALTH, HEALTH.request(value=service), timeout_seconds, retries=0)

    async def wait_until_ready(self, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Return as soon as a server is serving; see `Client.wait_until_ready`."""
        deadline = monotonic() + timeout_seconds
        while True:
            heard: Health | ServerError
            try:
                heard = await self.health(timeout_seconds=max(deadline - monotonic(), 0.001))
            except ServerError as error:
                heard = error
            if heard is Health.SERVING:
                return
            if monotonic() + READY_POLL_SECONDS >= deadline:
                raise not_ready(self._connection.name, timeout_seconds, heard) from None
            await asyncio.sleep(READY_POLL_SECONDS)

    async def close(self) -> None:
        """Close the connections; calls under way in other tasks end with an error."""
        self._closed = True
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self,
        call: Call[Request, Response, Answer],
        request: Request,
        timeout_seconds: float | None,
        retries: int | None = None,
    ) -> Answer:
        """Ask until there is an answer, or none can be expected."""
        tries = Tries(self._connection, timeout_seconds, retries)
        while True:
            method = self._next_method(call)
            try:
                return call.read(
                    await method(request, timeout=tries.start(), metadata=self._connection.call_metadata())
                )
            except grpc.RpcError as error:
                wait = tries.wait_seconds(error)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._closed and task is not None and not task.cancelling():
                    raise ValueError(CLOSED) from None
                raise
            await asyncio.sleep(wait)

    def _next_method(self, call: Call[Any, Any, Any]) -> _Method:
        """Return the method of the next channel; channels belong to the loop that runs at the first call."""
        if self._closed:
            raise ValueError(CLOSED)
        if not self._channels:
            self._channels = self._connection.open_async()
            self._methods = {
                each.path: itertools.cycle([_method(channel, each) for channel in self._channels]) for each in CALLS
            }
        return next(self._methods[call.path])


def _method(channel: grpc.aio.Channel, call: Call[Any, Any, Any]) -> _Method:
    return channel.unary_unary(call.path, call.request.SerializeToString, call.response.FromString)
