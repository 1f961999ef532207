"""Server reflection, v1 and v1alpha: what services there are, and their messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from pellucid.v1 import explain_pb2
from server.calls import Watched, unwatched
from server.edge import Gate, streaming
from server.oip_messages import FILE as OPEN_INFERENCE

# Version 1 has the same messages; clients ask for it first and for the older one then.
NAMES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)


def add_reflection(
    server: grpc.aio.Server, services: tuple[str, ...], gate: Gate, watched: Watched = unwatched
) -> None:
    """Register reflection of these services and of itself."""
    servicer = reflection.aio.ReflectionServicer((*services, *NAMES), _pool())

    async def answer(requests: AsyncIterable[bytes]) -> AsyncGenerator[reflection_pb2.ServerReflectionResponse]:
        async for response in servicer.ServerReflectionInfo(_parsed(requests), None):
            yield response

    handler = streaming(reflection_pb2.ServerReflectionRequest, answer, gate)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, watched(name, handlers)) for name in NAMES)
    )


async def _parsed(requests: AsyncIterable[bytes]) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    async for data in requests:
        yield reflection_pb2.ServerReflectionRequest.FromString(data)


def _pool() -> DescriptorPool:
    """Put all files into one pool; the Open Inference Protocol's live in one of their own."""
    pool = DescriptorPool()
    added: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name not in added:
            added.add(file.name)
            for needed in file.dependencies:
                add(needed)
            pool.AddSerializedFile(file.serialized_pb)

    for file in (explain_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR, OPEN_INFERENCE):
        add(file)
    return pool
