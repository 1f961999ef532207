"""The Open Inference Protocol: what each call of `inference.GRPCInferenceService` does; no transport."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from analyzers import __version__
from analyzers.errors import InvalidInputError
from server.call import refused
from server.deadline import within
from server.errors import (
    INTERNAL_TEXT,
    NotAllowedError,
    RefusedModelError,
    UnknownModelError,
    UnsupportedError,
    failure_of,
)
from server.model_settings import settings_of
from server.oip_messages import oip
from server.oip_metadata import config_message, metadata_message, statistics_message
from server.oip_request import MAX_ID, SMALL_BYTES, read_images, read_question, takes_long
from server.oip_response import answer, failed_in_stream, in_stream
from server.oip_stream import answer_in_order
from server.request import Images, Limits
from server.turns import Turns

if TYPE_CHECKING:
    from server.model import ExplainedModel
    from server.oip_request import Question
    from server.repository import Repository
    from server.settings import Settings

log = logging.getLogger("pellucid.oip")

NAME = "pellucid"
EXTENSIONS = ("classification", "model_configuration", "statistics", "pellucid_explanation")
STREAM_REQUESTS = 16

_NO_SHARED_MEMORY = "shared memory is not offered; send tensors in the request itself"
_NOT_OFFERED = {
    "TraceSetting": "trace settings are not offered; the server's own --traces-sample decides",
    "LogSettings": "log settings are not offered; the server's own --log-level decides",
    "SystemSharedMemoryStatus": _NO_SHARED_MEMORY,
    "SystemSharedMemoryRegister": _NO_SHARED_MEMORY,
    "SystemSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryStatus": _NO_SHARED_MEMORY,
    "CudaSharedMemoryRegister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryUnregister": _NO_SHARED_MEMORY,
}


@dataclass(frozen=True, slots=True)
class Unary:
    """A call with one answer.

    Attributes:
        request: class of its request.
        answer: from request to response, or to the response's bytes.
    """

    request: type[Message]
    answer: Callable[[Any], Awaitable[Message | bytes]]


@dataclass(frozen=True, slots=True)
class Stream:
    """A call with many requests and answers.

    Attributes:
        request: class of its requests.
        answer: from serialised requests to serialised responses; to be closed (`aclose`) by whoever leaves it early.
    """

    request: type[Message]
    answer: Callable[[AsyncIterable[bytes]], AsyncGenerator[bytes]]


class InferenceService:
    """Answers requests from a repository of models.

    Args:
        repository: the models.
        limits: what a request may hold.
        settings: the server's.
        decoders: threads that decode pictures and read what is large.
        admit: counts a stream's request of so many bytes while it is under way, and may refuse it.
        crowded: whether others ask beside the streams, for whom these are to leave room.

    Attributes:
        ready: what ServerReady answers; to be cleared when the server is told to stop.
    """

    def __init__(
        self,
        repository: Repository,
        limits: Limits,
        settings: Settings,
        decoders: Executor,
        *,
        admit: Callable[[int], AbstractContextManager[object]] = nullcontext,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self.ready = True
        self._admit = admit
        self._repository = repository
        self._limits = limits
        self._settings = settings
        self._decoders = decoders
        # Enough to fill one batch while another runs, or just to keep the workers busy.
        self._turns = Turns(max(STREAM_REQUESTS, 2 * settings.max_batch), 1 + settings.workers, crowded)

    def methods(self) -> dict[str, Unary | Stream]:
        """Return every call of the service by name."""
        offered: dict[str, Unary | Stream] = {
            "ServerLive": Unary(oip.ServerLiveRequest, self.server_live),
            "ServerReady": Unary(oip.ServerReadyRequest, self.server_ready),
            "ModelReady": Unary(oip.ModelReadyRequest, self.model_ready),
            "ServerMetadata": Unary(oip.ServerMetadataRequest, self.server_metadata),
            "ModelMetadata": Unary(oip.ModelMetadataRequest, self.model_metadata),
            "ModelInfer": Unary(oip.ModelInferRequest, self.model_infer),
            "ModelStreamInfer": Stream(oip.ModelInferRequest, self.model_stream_infer),
            "ModelConfig": Unary(oip.ModelConfigRequest, self.model_config),
            "ModelStatistics": Unary(oip.ModelStatisticsRequest, self.model_statistics),
            "RepositoryIndex": Unary(oip.RepositoryIndexRequest, self.repository_index),
            "RepositoryModelLoad": Unary(oip.RepositoryModelLoadRequest, self.repository_model_load),
            "RepositoryModelUnload": Unary(oip.RepositoryModelUnloadRequest, self.repository_model_unload),
        }
        refused = {name: Unary(oip.NotOffered, partial(_refuse, why)) for name, why in _NOT_OFFERED.items()}
        return offered | refused

    async def server_live(self, request: oip.ServerLiveRequest) -> oip.ServerLiveResponse:
        """Say that the process answers."""
        return oip.ServerLiveResponse(live=True)

    async def server_ready(self, request: oip.ServerReadyRequest) -> oip.ServerReadyResponse:
        """Say whether the server takes requests."""
        return oip.ServerReadyResponse(ready=self.ready)

    async def server_metadata(self, request: oip.ServerMetadataRequest) -> oip.ServerMetadataResponse:
        """Say what this server is and which extensions work."""
        control = ("model_repository",) if self._settings.model_control else ()
        return oip.ServerMetadataResponse(name=NAME, version=__version__, extensions=(*EXTENSIONS, *control))

    async def model_ready(self, request: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
        """Say whether a model can be asked; unknown and refused ones cannot."""
        try:
            self._repository.get(request.name, request.version)
        except (UnknownModelError, RefusedModelError):
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=True)

    async def model_metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        """Say what a model takes and answers, and what its outputs mean."""
        model = self._repository.get(request.name, request.version)
        return metadata_message(model, [one.version for one in self._ready_models() if one.name == model.name])

    async def model_config(self, request: oip.ModelConfigRequest) -> oip.ModelConfigResponse:
        """Say how a model is served."""
        model = self._repository.get(request.name, request.version)
        own, common = settings_of(self._settings.models, model.name), self._settings
        return config_message(
            model,
            max_images=self._limits.max_images,
            max_batch=own.max_batch or common.max_batch,
            max_delay_ms=common.max_delay_ms if own.max_delay_ms is None else own.max_delay_ms,
        )

    async def model_statistics(self, request: oip.ModelStatisticsRequest) -> oip.ModelStatisticsResponse:
        """Say what has been answered: by one version, by a model's ready versions, or by all that are ready."""
        models = self._ready_models()
        if request.name:
            named = self._repository.get(request.name, request.version)
            models = [named] if request.version else [model for model in models if model.name == named.name]
        return oip.ModelStatisticsResponse(model_stats=map(statistics_message, models))

    async def model_infer(self, request: oip.ModelInferRequest) -> bytes:
        """Run the model on the pictures; returns a serialised ModelInferResponse.

        Raises:
            PellucidError: as `ExplainedModel.run` does, or because the request does not fit.
        """
        model = self._repository.get(request.model_name, request.model_version)
        question = read_question(request, model, self._limits)
        model.batcher.check(1)
        if question.timeout_seconds is None:
            return await self._answer(request, question, model)
        async with within(question.timeout_seconds):
            return await self._answer(request, question, model)

    def model_stream_infer(self, requests: AsyncIterable[bytes]) -> AsyncGenerator[bytes]:
        """Answer serialised requests in their order; what one of them does wrong is said in its answer."""
        return answer_in_order(requests, self._answer_in_stream, STREAM_REQUESTS, self._turns)

    async def repository_index(self, request: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
        """List every model version on disk or loaded."""
        entries = await asyncio.to_thread(self._repository.index)
        return oip.RepositoryIndexResponse(
            models=[
                oip.RepositoryIndexResponse.ModelIndex(
                    name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
                )
                for entry in entries
                if entry.state == "READY" or not request.ready
            ]
        )

    async def repository_model_load(self, request: oip.RepositoryModelLoadRequest) -> oip.RepositoryModelLoadResponse:
        """Load a model, or load it anew; returns when it is ready."""
        name = self._controlled(request)
        for key in request.parameters:
            if key == "config" or key.startswith("file:"):
                raise UnsupportedError(f"parameters[{key[:40]}]: models come from the repository, never from a request")
        await asyncio.to_thread(self._repository.load, name)
        return oip.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: oip.RepositoryModelUnloadRequest
    ) -> oip.RepositoryModelUnloadResponse:
        """Stop serving a model; requests under way are answered."""
        await asyncio.to_thread(self._repository.unload, self._controlled(request))
        return oip.RepositoryModelUnloadResponse()

    def _controlled(self, request: oip.RepositoryModelLoadRequest | oip.RepositoryModelUnloadRequest) -> str:
        """Return the name of the model that a client loads or unloads, if it may."""
        if not self._settings.model_control:
            raise NotAllowedError("clients may not load or unload models; the server runs without --model-control")
        name = request.model_name or request.repository_name  # some clients' protocol has the name at field 1
        if not name:
            raise InvalidInputError("model_name", "is empty; expected the name of a model")
        return name

    def _ready_models(self) -> list[ExplainedModel]:
        return [entry.model for entry in self._repository.entries if entry.model is not None]

    async def _answer(self, request: oip.ModelInferRequest, question: Question, model: ExplainedModel) -> bytes:
        read = partial(read_images, request, question, model.manifest.input, self._limits)
        images: Images
        began = time.monotonic()
        if takes_long(question, model.manifest.input):
            images = await asyncio.get_running_loop().run_in_executor(self._decoders, read)
        else:
            images = read()
        model.decoded(began)
        return await model.run(images, question.outputs, partial(answer, model, request.id, question))

    async def _answer_in_stream(self, data: bytes) -> bytes:
        request = oip.ModelInferRequest()
        try:
            with self._admit(len(data)):
                async with within(self._settings.max_request_seconds):
                    if len(data) < SMALL_BYTES:
                        request.ParseFromString(data)
                    else:
                        await asyncio.to_thread(request.ParseFromString, data)
                    return in_stream(await self.model_infer(request))
        except DecodeError:
            name = oip.ModelInferRequest.DESCRIPTOR.full_name
            failure = failure_of(InvalidInputError("request", f"is not a {name}; its bytes cannot be parsed"))
        except Exception as error:
            failure = failure_of(error)
            if failure.text == INTERNAL_TEXT:
                log.exception("a request of a stream failed")
        refused(failure.reason)
        return failed_in_stream(failure.text, request.id[:MAX_ID])


async def _refuse(sentence: str, request: oip.NotOffered) -> Message:
    raise UnsupportedError(sentence)
