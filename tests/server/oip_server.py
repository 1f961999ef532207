"""A server of both protocols in this process, with whatever settings a test wants."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from server.app import add_service, make_server, open_repository
from server.edge import Gate, GateLimits, streaming, unary
from server.oip import InferenceService, Unary
from server.oip_messages import SERVICE
from server.request import Limits
from server.servicer import Servicer
from server.settings import Settings
from server.workers import Workers


@contextmanager
def oip_server(repository: Path, **options: int | bool) -> Iterator[str]:
    """Yield the address of a server with these settings."""
    settings = Settings(repository=repository, port=0, workers=2, **options)
    started, address = threading.Event(), []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        workers, decoders = Workers(settings.workers), ThreadPoolExecutor(settings.workers)
        gate = Gate(GateLimits(settings.max_requests, settings.max_waiting_bytes, 60, 1))
        models = open_repository(settings, workers)
        limits = Limits(settings.max_images, settings.max_pixels)
        server = make_server(settings)
        add_service(server, Servicer(models, limits, decoders), gate)
        service = InferenceService(models, limits, settings, decoders, admit=gate.admit)
        handlers = {
            name: unary(method.request, method.answer, gate)
            if isinstance(method, Unary)
            else streaming(method.request, method.answer, gate)
            for name, method in service.methods().items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        address.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        started.set()
        await stop.wait()
        await server.stop(5)
        workers.stop()
        decoders.shutdown()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(30), "the server did not start"
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
