"""Clients for `pellucid.v1`: pictures in, Explanations out. They load neither ONNX Runtime nor an image decoder."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

import grpc

from analyzers.explanation import Explanation
from analyzers.what_if import Change
from pellucid.v1 import explain_pb2 as pb
from server.async_client import AsyncClient
from server.channels import DEFAULT_RETRIES, DEFAULT_TIMEOUT_SECONDS, Connection, ConnectionOptions
from server.client_batch import OnError, Outcome, Plan, UnderWay, answers
from server.client_calls import (
    CALLS,
    EVIDENCE,
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
from server.client_tls import Tls

__all__ = [
    "DEFAULT_RETRIES",
    "DEFAULT_TIMEOUT_SECONDS",
    "EVIDENCE",
    "AsyncClient",
    "Client",
    "Health",
    "Image",
    "ServerError",
    "Tls",
]


class Client:
    """Asks servers, and waits for the answers; thread-safe, and a context manager that closes its connections.

    Args:
        target: "HOST:PORT"; several of them, in a list or with commas; or a gRPC name such as "dns:///service:50051".
        options: as `Connection` explains them: `timeout_seconds`, `retries`, `channels`, `tls`, `token`,
            `token_in_clear`, `credentials`, `compression`, `metadata`, `keepalive_seconds`, `max_message_bytes`.

    Raises:
        InvalidInputError: the target is no address, or an option is out of range or does not fit.
        OSError: a certificate, a key or a token cannot be read.
    """

    def __init__(self, target: str | Sequence[str], **options: Unpack[ConnectionOptions]) -> None:
        self._connection = Connection(target, **options)
        self._channels = self._connection.open()
        self._methods = {call.path: itertools.cycle([_method(c, call) for c in self._channels]) for call in CALLS}
        self._closed = threading.Event()

    def explain(
        self,
        images: Image | Sequence[Image],
        *,
        timeout_seconds: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> list[Explanation]:
        """Predict and explain pictures, all in one run of the model.

        Args:
            images: encoded pictures (bytes), paths of picture files, or arrays (height, width, 3), uint8 or float
                in 0..1, of the model's own size; one of them, a sequence of one kind, or an array
                (batch, height, width, 3).
            timeout_seconds: how long this call may take; the client's where left out.
            options: as `explain_request` explains them: `model`, `version`, `rows`, `top_k_classes`, `top_k_reasons`,
                `max_nodes`, `min_percentile`, `evidence`.

        Raises:
            ServerError: the server refused or could not be reached; `code` says how.
            InvalidInputError: the pictures are of mixed or unknown kinds.
            OSError: a picture file cannot be read.
        """
        return self._call(EXPLAIN, explain_request(images, **options), timeout_seconds)

    @overload
    def explain_many(
        self,
        pictures: Iterable[Image],
        *,
        batch: int = 8,
        concurrency: int = 4,
        on_error: Literal["raise"] = "raise",
        progress: Progress = False,
        timeout_seconds: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> Iterator[Explanation]: ...

    @overload
    def explain_many(
        self,
        pictures: Iterable[Image],
        *,
        batch: int = 8,
        concurrency: int = 4,
        on_error: Literal["return"],
        progress: Progress = False,
        timeout_seconds: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> Iterator[Outcome]: ...

    def explain_many(
        self,
        pictures: Iterable[Image],
        *,
        batch: int = 8,
        concurrency: int = 4,
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout_seconds: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> Iterator[Outcome]:
        """Predict and explain any number of pictures, several requests at a time, and yield the answers in order.

        Pictures are taken from the source as they are needed, at most 2 * `concurrency` * `batch` before their answers
        are. A request that fails because of a picture is asked again picture by picture, so that one bad picture costs
        its own answer alone. Leaving the loop, or Ctrl-C, ends what is under way.

        Args:
            pictures: encoded pictures, paths or arrays, as in `explain`.
            batch: pictures in a request.
            concurrency: requests at a time.
            on_error: whether the error of a bad picture is raised when its turn comes, or yielded in the place of its
                answer. What concerns every picture, such as an unknown model, is always raised.
            progress: whether to show a bar on stderr, "auto" where that is a terminal; needs `rich`, and is silent
                without it.
            timeout_seconds: how long each request may take; the client's where left out.
            options: as in `explain`.

        Raises:
            ServerError: the server refused or could not be reached; a note says at which picture.
            InvalidInputError: a picture is of an unknown kind, or an argument out of range.
            OSError: a picture file cannot be read.
        """
        explain_request([], **options)  # what is wrong with them is said here and not at the first answer
        under_way = UnderWay()

        def ask(images: list[Image]) -> list[Explanation]:
            return self._call(EXPLAIN, explain_request(images, **options), timeout_seconds, under_way)

        return answers(pictures, Plan(batch, concurrency, on_error, progress), ask, under_way)

    def what_if(
        self,
        image: Image,
        *changes: Change,
        timeout_seconds: float | None = None,
        **options: Unpack[WhatIfOptions],
    ) -> pb.WhatIfResponse:
        """Predict one picture and ask what the answer would be if things counted for less or more.

        Exact for every class, and without another run of the model, but for `occlude`.

        Args:
            image: an encoded picture (bytes), the path of one, or an array as in `explain`.
            changes: what counts for less or more, such as `Change("feature", 12)` without feature 12.
            timeout_seconds: how long this call may take; the client's where left out.
            options: as `what_if_request` explains them: `model`, `version`, `smallest_flip`, `occlude`,
                `top_k_classes`.

        Raises:
            ServerError: the server refused or could not be reached.
            InvalidInputError: the picture is of an unknown kind.
            OSError: a picture file cannot be read.
        """
        return self._call(WHAT_IF, what_if_request(image, changes, **options), timeout_seconds)

    def list_models(self, *, timeout_seconds: float | None = None) -> list[pb.ModelStatus]:
        """Return the status of every model version.

        Raises:
            ServerError: the server could not be reached.
        """
        return self._call(LIST_MODELS, pb.ListModelsRequest(), timeout_seconds)

    def get_model(
        self, model: str = "", version: str = "", *, timeout_seconds: float | None = None
    ) -> pb.GetModelResponse:
        """Return what one model takes, knows and can explain.

        Raises:
            ServerError: there is no such model, or the server could not be reached.
        """
        return self._call(GET_MODEL, pb.GetModelRequest(model=model, version=version), timeout_seconds)

    def health(self, service: str = "", *, timeout_seconds: float | None = None) -> Health:
        """Ask once whether the server is ready; a call that fails is not repeated.

        Args:
            service: which part of the server, "" for all of it.
            timeout_seconds: how long this call may take; the client's where left out.

        Raises:
            ServerError: the server does not know the service, or could not be reached; of several servers, none could
                or none is serving.
        """
        return self._call(HEALTH, HEALTH.request(value=service), timeout_seconds, retries=0)

    def wait_until_ready(self, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Return as soon as a server is serving, one that is still to be started included.

        Raises:
            ServerError: none is after so many seconds; the sentence says what was heard last.
        """
        deadline = monotonic() + timeout_seconds
        while True:
            heard: Health | ServerError
            try:
                heard = self.health(timeout_seconds=max(deadline - monotonic(), 0.001))
            except ServerError as error:
                heard = error
            if heard is Health.SERVING:
                return
            if monotonic() + READY_POLL_SECONDS >= deadline:
                raise not_ready(self._connection.name, timeout_seconds, heard) from None
            self._pause(READY_POLL_SECONDS)

    def close(self) -> None:
        """Close the connections; calls under way in other threads end with an error."""
        self._closed.set()
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self,
        call: Call[Request, Response, Answer],
        request: Request,
        timeout_seconds: float | None,
        under_way: UnderWay | None = None,
        retries: int | None = None,
    ) -> Answer:
        """Ask until there is an answer, or none can be expected."""
        tries = Tries(self._connection, timeout_seconds, retries)
        while True:
            self._pause(0)
            method, metadata = next(self._methods[call.path]), self._connection.call_metadata()
            try:
                if under_way is None:
                    return call.read(method(request, tries.start(), metadata))
                return call.read(under_way.result(method.future(request, tries.start(), metadata)))
            except grpc.RpcError as error:
                wait = tries.wait_seconds(error)
            (self._closed if under_way is None else under_way.ended).wait(wait)

    def _pause(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise ValueError(CLOSED)


def _method(channel: grpc.Channel, call: Call[Any, Any, Any]) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
    return channel.unary_unary(call.path, call.request.SerializeToString, call.response.FromString)
