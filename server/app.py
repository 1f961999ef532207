"""The gRPC edge: parse, hand to the servicer in a worker thread, answer; errors become statuses here alone."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from analyzers.errors import InvalidInputError
from pellucid.v1 import explain_pb2 as pb
from server.errors import DETAILS_KEY, INTERNAL_TEXT, failure_of
from server.repository import Repository
from server.request import Limits
from server.servicer import Servicer
from server.settings import Settings

log = logging.getLogger("pellucid.server")

SERVICE = pb.DESCRIPTOR.services_by_name["ExplainService"].full_name

Request = TypeVar("Request", bound=Message)


def _handler(
    request_type: type[Request], answer: Callable[[Request], Message], workers: ThreadPoolExecutor
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """Wrap a servicer method; bytes are parsed here, since gRPC would answer malformed ones UNKNOWN."""

    def work(data: bytes) -> bytes:
        return answer(request_type.FromString(data)).SerializeToString()

    async def handle(data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        try:
            return await asyncio.get_running_loop().run_in_executor(workers, work, data)
        except DecodeError:
            name = request_type.DESCRIPTOR.full_name
            failure = failure_of(InvalidInputError("request", f"is not a {name}; its bytes cannot be parsed"))
        except Exception as error:
            failure = failure_of(error)
            if failure.text == INTERNAL_TEXT:
                log.exception("%s failed", request_type.DESCRIPTOR.name)
        await context.abort(failure.code, failure.text, ((DETAILS_KEY, failure.details),))
        raise AssertionError  # abort always raises; this tells the type checker so

    return grpc.unary_unary_rpc_method_handler(handle)


def add_service(server: grpc.aio.Server, servicer: Servicer, workers: ThreadPoolExecutor) -> None:
    """Register `pellucid.v1.ExplainService`."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Explain": _handler(pb.ExplainRequest, servicer.explain, workers),
        "WhatIf": _handler(pb.WhatIfRequest, servicer.what_if, workers),
        "ListModels": _handler(pb.ListModelsRequest, servicer.list_models, workers),
        "GetModel": _handler(pb.GetModelRequest, servicer.get_model, workers),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


async def serve(settings: Settings, listening: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is running and return.

    Args:
        settings: all settings.
        listening: called once with "HOST:PORT".

    Raises:
        RepositoryError: there is no such repository.
        RuntimeNotReadyError: the GPU was asked for and cannot be had.
        OSError: the port is taken.
    """
    repository = Repository.load(settings.repository, device=settings.device, threads=settings.threads)
    limits = Limits(settings.max_images, settings.max_pixels)
    workers = ThreadPoolExecutor(settings.workers, "explain")
    server = grpc.aio.server(
        maximum_concurrent_rpcs=settings.max_requests,
        options=[
            ("grpc.max_receive_message_length", settings.max_request_bytes),
            ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a wish
        ],
    )
    add_service(server, Servicer(repository, limits), workers)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"{settings.host}:{settings.port}"
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        raise OSError(f"cannot listen on {address}; the port is taken or the address is not this machine's") from None
    await server.start()
    for name in ("", SERVICE):
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listening(f"{settings.host}:{port}")
    await stop.wait()
    log.info("stopping; running requests have %.0f s to finish", settings.grace_seconds)
    await healthy.enter_graceful_shutdown()
    await server.stop(settings.grace_seconds)
    workers.shutdown(cancel_futures=True)
