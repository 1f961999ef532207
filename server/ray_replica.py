"""A replica of Ray Serve: the plain server's services, edge and errors, without its transport."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast

import grpc

from server.app import SERVICE, add_health, add_open_inference, add_service, limits_of, open_repository
from server.edge import Context as EdgeContext
from server.edge import Gate, abort
from server.errors import TooLargeError, failure_of
from server.health import Health
from server.logs import write_log
from server.oip import InferenceService
from server.oip_messages import SERVICE as OPEN_INFERENCE
from server.processes import SWITCH_SECONDS
from server.ray_edge import Call, Details, Handlers
from server.repository import Repository, RepositoryError
from server.request import Limits
from server.servicer import Servicer
from server.settings import Settings
from server.workers import Workers

log = logging.getLogger("pellucid.ray")

STREAM = f"/{OPEN_INFERENCE}/ModelStreamInfer"


class RayContext(Protocol):
    """What a replica tells its proxy about a call's end."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status."""

    def set_details(self, details: str) -> None:
        """Set the sentence."""

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, bytes]]) -> None:
        """Set what goes with them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A serialised message, as Ray wants to be given messages."""

    data: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802 (Ray calls it)
        """Return the message."""
        return self.data


class _AbortedError(Exception):
    """A call has been ended with a status."""


class _Context:
    """A call as the plain server's edge knows it, in a process that has no connection to the caller.

    Args:
        ray: who carries the status to the proxy.
        seconds: what is left of the caller's deadline.

    Attributes:
        written: a stream's answers, None at its end.
    """

    def __init__(self, ray: RayContext, seconds: float | None = None) -> None:
        self.written: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._ray = ray
        self._seconds = seconds

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller's deadline."""
        return self._seconds

    async def write(self, data: bytes) -> None:
        """Pass an answer of a stream on."""
        self.written.put_nowait(data)

    async def abort(self, code: grpc.StatusCode, text: str, metadata: Sequence[tuple[str, bytes]]) -> None:
        """End the call with a status."""
        self._ray.set_code(code)
        self._ray.set_details(text)
        self._ray.set_trailing_metadata(list(metadata))
        raise _AbortedError


class Replica:
    """Answers every call of both services; `Explain` and so on are named as the protocols name them, for Ray.

    Args:
        settings: the plain server's; where it listens is not this one's concern.

    Raises:
        RepositoryError: there is no such repository, or no model in it is ready.
        RuntimeNotReadyError: the GPU was asked for and cannot be had.
    """

    def __init__(self, settings: Settings) -> None:
        write_log(settings.log_level, settings.log_format)
        sys.setswitchinterval(SWITCH_SECONDS)
        self._max_bytes = settings.max_request_bytes
        workers = Workers(settings.workers)
        decoders = ThreadPoolExecutor(settings.workers, "decode")
        self._repository = open_repository(settings, workers)
        if not self._any_ready():
            raise RepositoryError(f"no model below {settings.repository} is ready; the log above says why")
        gate, watchers = Gate(limits_of(settings)), Gate(limits_of(settings))
        limits = Limits(settings.max_images, settings.max_pixels)
        inference = InferenceService(
            self._repository, limits, settings, decoders, admit=gate.admit, crowded=gate.crowded
        )
        self._handlers = Handlers()
        add_service(self._handlers.server, Servicer(self._repository, limits, decoders), gate)
        add_open_inference(self._handlers.server, inference, gate)
        add_health(self._handlers.server, Health(SERVICE, OPEN_INFERENCE), watchers)
        if settings.poll_seconds:
            poll = threading.Thread(target=_poll, args=(self._repository, settings.poll_seconds), daemon=True)
            poll.start()

    def check_health(self) -> None:
        """Say that all is well by returning; Ray asks again and again, and replaces a replica that raises.

        Raises:
            RepositoryError: no model is ready any more.
        """
        if not self._any_ready():
            raise RepositoryError("no model is ready any more")

    async def __call__(self, _: object) -> str:
        """Answer HTTP, which Ray Serve's proxies speak too."""
        return "explanations are served over gRPC, on the port of grpc_options\n"

    async def _answer(self, call: Call, grpc_context: RayContext) -> Answer:
        """Answer a call with one request and one answer."""
        context = _Context(grpc_context, call.seconds)
        try:
            if (error := self._too_large(call.data)) is not None:
                await abort(cast("EdgeContext", context), failure_of(error))
            return Answer(await self._handler(call.method).unary_unary(call.data, context))
        except _AbortedError:
            return Answer(b"")

    Explain = WhatIf = ListModels = GetModel = _answer
    ServerLive = ServerReady = ServerMetadata = ModelReady = ModelMetadata = ModelInfer = _answer
    ModelConfig = ModelStatistics = RepositoryIndex = RepositoryModelLoad = RepositoryModelUnload = _answer
    TraceSetting = LogSettings = SystemSharedMemoryStatus = CudaSharedMemoryStatus = _answer
    SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _answer
    CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _answer
    Check = _answer

    async def ModelStreamInfer(  # noqa: N802 (the protocol's name)
        self, messages: AsyncIterator[bytes], grpc_context: RayContext
    ) -> AsyncGenerator[Answer]:
        """Answer a stream; an empty answer at its end carries the status where there is one."""
        context = _Context(grpc_context)
        running = asyncio.create_task(self._answer_stream(messages, context))
        try:
            while (data := await context.written.get()) is not None:
                yield Answer(data)
            if await running:
                yield Answer(b"")
        finally:
            running.cancel()

    async def _answer_stream(self, messages: AsyncIterator[bytes], context: _Context) -> bool:
        """Write the answers of a stream and return whether it was ended with a status."""

        async def checked() -> AsyncGenerator[bytes]:
            async for data in messages:
                if (error := self._too_large(data)) is not None:
                    raise error
                yield data

        try:
            await self._handler(STREAM).stream_stream(checked(), context)
        except _AbortedError:
            return True
        finally:
            context.written.put_nowait(None)
        return False

    def _too_large(self, data: bytes) -> TooLargeError | None:
        return TooLargeError(len(data), self._max_bytes) if len(data) > self._max_bytes else None

    def _handler(self, method: str) -> Any:  # noqa: ANN401 (gRPC's own types leave open what a handler takes)
        handler = self._handlers.find(Details(method))
        assert handler is not None, method  # noqa: S101 (the proxy knows the same methods)
        return handler

    def _any_ready(self) -> bool:
        return any(entry.model is not None for entry in self._repository.entries)


def _poll(repository: Repository, seconds: float) -> None:
    """Look for changed models again and again."""
    pause = threading.Event()
    while not pause.wait(seconds):
        repository.poll()
