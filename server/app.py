"""The server's life: load, listen, answer, and on SIGTERM finish what runs without losing any of it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from pellucid.v1 import explain_pb2 as pb
from server.authorise import open_authoriser
from server.batcher import BatchLimits
from server.calls import Calls, Watched, unwatched
from server.connections import connection_options, listen
from server.edge import Gate, GateLimits, streaming, unary
from server.health import SERVICE as HEALTH
from server.health import Health
from server.load import load_model
from server.logs import AccessLog
from server.model import ExplainedModel
from server.model_settings import ModelSettings, settings_of
from server.oip import InferenceService, Unary
from server.oip_messages import SERVICE as OPEN_INFERENCE
from server.readings import Reading, read
from server.reflection import add_reflection
from server.repository import Repository
from server.request import Limits
from server.servicer import Servicer
from server.settings import Settings
from server.traces import open_traces
from server.vet import TrialLimits, Vetting
from server.workers import Workers

log = logging.getLogger("pellucid.server")

SERVICE = pb.DESCRIPTOR.services_by_name["ExplainService"].full_name
Read = Callable[[], Reading]
SERVICES = (SERVICE, OPEN_INFERENCE, HEALTH)


def add_service(server: grpc.aio.Server, servicer: Servicer, gate: Gate, watched: Watched = unwatched) -> None:
    """Register `pellucid.v1.ExplainService`."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Explain": unary(pb.ExplainRequest, servicer.explain, gate),
        "WhatIf": unary(pb.WhatIfRequest, servicer.what_if, gate),
        "ListModels": unary(pb.ListModelsRequest, servicer.list_models, gate),
        "GetModel": unary(pb.GetModelRequest, servicer.get_model, gate),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, watched(SERVICE, handlers)),))


def add_open_inference(
    server: grpc.aio.Server, service: InferenceService, gate: Gate, watched: Watched = unwatched
) -> None:
    """Register `inference.GRPCInferenceService`."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: unary(method.request, method.answer, gate)
        if isinstance(method, Unary)
        else streaming(method.request, method.answer, gate)
        for name, method in service.methods().items()
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(OPEN_INFERENCE, watched(OPEN_INFERENCE, handlers)),)
    )


def add_health(server: grpc.aio.Server, healthy: Health, gate: Gate, watched: Watched = unwatched) -> None:
    """Register `grpc.health.v1.Health`."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Check": unary(health_pb2.HealthCheckRequest, healthy.check, gate),
        "Watch": streaming(health_pb2.HealthCheckRequest, healthy.watch, gate),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH, watched(HEALTH, handlers)),))


def open_repository(settings: Settings, workers: Workers, *, drift: bool = False) -> Repository:
    """Load the models; `drift` is whether somebody wants to know how far they are from their baselines.

    Raises:
        RepositoryError: there is no such repository.
        RuntimeNotReadyError: the GPU was asked for and cannot be had.
    """
    largest = max([settings.max_batch, *(own.max_batch or 1 for own in settings.models.values())])
    vet = Vetting(TrialLimits(settings.vet_seconds, settings.vet_memory_bytes, largest))

    def loader(path: Path, name: str, version: str) -> ExplainedModel:
        own = settings_of(settings.models, name)
        return load_model(
            path,
            name,
            version,
            device=own.device or settings.device,
            threads=own.threads or settings.threads,
            execution=own,
            workers=workers,
            limits=limits_of_model(settings, own),
            vet=vet,
            drift=drift,
        )

    return Repository.open(settings.repository, loader, versions=settings.versions)


def limits_of_model(settings: Settings, own: ModelSettings) -> BatchLimits:
    """Return how a model's pictures are put together."""
    delay = settings.max_delay_ms if own.max_delay_ms is None else own.max_delay_ms
    return BatchLimits(
        max_batch=own.max_batch or settings.max_batch,
        max_delay_seconds=delay / 1000,
        max_queue=settings.max_queue,
        instances=own.instances or settings.instances or settings.workers,
    )


def make_server(settings: Settings) -> grpc.aio.Server:
    """Make a gRPC server without services."""
    return grpc.aio.server(options=connection_options(settings))


def limits_of(settings: Settings) -> GateLimits:
    """Return what may be under way at a time."""
    return GateLimits(
        settings.max_requests, settings.max_waiting_bytes, settings.max_request_seconds, settings.lame_duck_seconds
    )


async def serve(
    settings: Settings, listening: Callable[[str], None], publish: Callable[[Read], None] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is running and return.

    Args:
        settings: all settings.
        listening: called once with "HOST:PORT".
        publish: called once with what reads the metrics, from any thread; None where nobody wants them.

    Raises:
        RepositoryError: there is no such repository.
        RuntimeNotReadyError: the GPU was asked for and cannot be had.
        AccessFileError: the file of who may do what cannot be used.
        CertificateError: the certificate, its key or the authorities cannot be used.
        OSError: the port is taken.
        TracesError: calls are to be traced, and what does it is not installed.
    """
    # Nothing is under way while models load. As process 1 of a container we would otherwise not even notice.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    traces = open_traces(settings.traces_endpoint, settings.traces_sample) if settings.traces_endpoint else None
    access_log = AccessLog(logging.INFO if settings.access_log else logging.DEBUG)
    calls = Calls(open_authoriser(settings), access_log, traces)
    workers = Workers(settings.workers)
    decoders = ThreadPoolExecutor(settings.workers, "decode")
    repository = open_repository(settings, workers, drift=publish is not None)
    _forget_what_loading_left()
    gate = Gate(limits_of(settings))
    server = make_server(settings)
    limits = Limits(settings.max_images, settings.max_pixels)
    inference = InferenceService(repository, limits, settings, decoders, admit=gate.admit, crowded=gate.crowded)
    add_service(server, Servicer(repository, limits, decoders), gate, calls.watched)
    add_open_inference(server, inference, gate, calls.watched)
    healthy, watchers = Health(SERVICE, OPEN_INFERENCE), Gate(limits_of(settings))  # asked however busy the rest is
    add_health(server, healthy, watchers, calls.watched)
    add_reflection(server, SERVICES, gate, calls.watched)
    port = listen(server, settings)
    if publish is not None:
        publish(partial(read, calls, gate, repository))
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listening(f"{settings.host}:{port}")
    polling = asyncio.create_task(_poll(repository, settings.poll_seconds)) if settings.poll_seconds else None
    await stop.wait()
    if polling is not None:
        polling.cancel()
    inference.ready = False
    await _drain(settings, server, healthy, gate)
    workers.stop()
    decoders.shutdown(cancel_futures=True)
    if traces is not None:
        await asyncio.to_thread(traces.close)


def _forget_what_loading_left() -> None:
    """Let the garbage collector leave alone what stays for good; what comes and goes is then found sooner."""
    gc.collect()
    gc.freeze()


async def _poll(repository: Repository, seconds: float) -> None:
    """Look for changed models again and again."""
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(repository.poll)


async def _drain(settings: Settings, server: grpc.aio.Server, healthy: Health, gate: Gate) -> None:
    """Say that we are going, give balancers time to notice, then finish what is under way."""
    log.info(
        "stopping in %.3g s; running requests have %.3g s to finish", settings.lame_duck_seconds, settings.grace_seconds
    )
    await healthy.stop_serving()
    await asyncio.sleep(settings.lame_duck_seconds)
    gate.stopping.set()
    stopped = asyncio.create_task(server.stop(settings.grace_seconds))
    with suppress(TimeoutError):
        await asyncio.wait_for(gate.idle.wait(), settings.grace_seconds)
    await healthy.close()  # watchers would stay until the last moment
    await stopped
