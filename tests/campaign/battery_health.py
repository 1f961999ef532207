"""Cases of health and reflection."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.campaign.battery_case import INVALID, NOT_FOUND, OK, Case, sent
from tests.campaign.wire import HEALTH, Reply, ask_stream

SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICES = {"pellucid.v1.ExplainService", "inference.GRPCInferenceService", "grpc.health.v1.Health"}


def serving(data: bytes) -> str:
    """Check that the answer is SERVING."""
    status = health_pb2.HealthCheckResponse.FromString(data).status
    return "" if status == SERVING else f"the status {status}"


def checked(service: str) -> Callable[[grpc.Channel], Reply]:
    """Return a health check of a service."""
    return sent(HEALTH + "Check", health_pb2.HealthCheckRequest(service=service))


def watched(service: str, expected: int) -> Callable[[grpc.Channel], Reply]:
    """Return a call that watches a service until its first status."""

    def call(channel: grpc.Channel) -> Reply:
        request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        watch = channel.unary_stream(HEALTH + "Watch")(request, timeout=5)
        status = health_pb2.HealthCheckResponse.FromString(next(watch)).status
        watch.cancel()
        return Reply(grpc.StatusCode.OK, data=b"" if status == expected else f"the status {status}".encode())

    return call


def reflected(package: str, messages: ModuleType) -> Callable[[grpc.Channel], Reply]:
    """Return a call that lists services by reflection and asks for the file of each of ours."""

    def call(channel: grpc.Channel) -> Reply:
        asked = [messages.ServerReflectionRequest(list_services="")]
        asked += [messages.ServerReflectionRequest(file_containing_symbol=name) for name in sorted(SERVICES)]
        method = f"/grpc.reflection.{package}.ServerReflection/ServerReflectionInfo"
        replies = ask_stream(channel, method, [one.SerializeToString() for one in asked])
        if not replies[-1].ok:
            return replies[-1]
        answers = [messages.ServerReflectionResponse.FromString(one.data) for one in replies]
        names = {one.name for one in answers[0].list_services_response.service}
        files = [len(one.file_descriptor_response.file_descriptor_proto) for one in answers[1:]]
        right = names >= SERVICES and all(files)
        return Reply(grpc.StatusCode.OK, data=b"" if right else f"the services {sorted(names)}, files {files}".encode())

    return call


HEALTH_CASES: tuple[Case, ...] = (
    Case("health of the server", checked(""), (OK,), check=serving),
    Case("health of our service", checked("pellucid.v1.ExplainService"), (OK,), check=serving),
    Case("health of the protocol's", checked("inference.GRPCInferenceService"), (OK,), check=serving),
    Case("health of nobody", checked("nobody"), (NOT_FOUND,), explained=False),
    Case("junk to health", sent(HEALTH + "Check", b"\xff\xff\xff\x0f"), (INVALID,), explained=False),
    Case("watching the server", watched("", SERVING), (OK,), check=bytes.decode),
    Case(
        "watching nobody",
        watched("nobody", health_pb2.HealthCheckResponse.SERVICE_UNKNOWN),
        (OK,),
        check=bytes.decode,
    ),
    Case("reflection v1alpha", reflected("v1alpha", reflection_pb2), (OK,), check=bytes.decode),
    # The messages of v1 are those of v1alpha under another package, the same on the wire.
    Case("reflection v1", reflected("v1", reflection_pb2), (OK,), check=bytes.decode),
)
