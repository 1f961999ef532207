"""What runs in Ray Serve's proxies and replicas, without Ray: what a proxy passes on, and what becomes of errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from pydantic import ValidationError

from pellucid.v1 import explain_pb2 as pb
from server.errors import DETAILS_KEY
from server.oip_messages import FILE as OPEN_INFERENCE
from server.ray_edge import IN_A_STREAM, Call, Details, Handlers, add_services
from server.ray_replica import Replica
from server.ray_settings import RaySettings

EXPLAIN = "/pellucid.v1.ExplainService/Explain"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
TRACE = "Traceback (most recent call last): File /srv/app.py, ip: 192.0.2.7"


class FakeContext:
    """A call in a proxy, as far as it is asked about it."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self.said: dict[str, object] = {"code": 0, "details": "", "metadata": ()}

    def time_remaining(self) -> float | None:
        return self.seconds

    def code(self) -> object:
        return self.said["code"]

    def details(self) -> object:
        return self.said["details"]

    def trailing_metadata(self) -> object:
        return self.said["metadata"]

    def set_code(self, code: object) -> None:
        self.said["code"] = code

    def set_details(self, details: object) -> None:
        self.said["details"] = details

    def set_trailing_metadata(self, metadata: object) -> None:
        self.said["metadata"] = metadata


def proxied(method: str, **behaviour: object) -> grpc.RpcMethodHandler:
    """Register with a server that puts its own behaviour into our handlers, as Ray's does, and return the result."""

    class RayLike(Handlers):
        def add_generic_rpc_handlers(self, generic: tuple[grpc.GenericRpcHandler, ...]) -> None:
            for handler in generic:
                handler._method_handlers = {
                    name: one._replace(**behaviour) for name, one in handler._method_handlers.items()
                }
            super().add_generic_rpc_handlers(generic)

    server = RayLike()
    add_services(object(), server)
    return server.find(Details(method))


def ended(code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, bytes], ...] = ()) -> FakeContext:
    """Return the context of a call that Ray ended."""

    async def routed(call: Call, context: FakeContext) -> bytes:
        context.set_code(code)
        context.set_details(details)
        context.set_trailing_metadata(metadata)
        return b""

    context = FakeContext()
    asyncio.run(proxied(EXPLAIN, unary_unary=routed).unary_unary(b"", context))
    return context


def test_a_call_takes_its_method_its_bytes_and_the_time_left_to_the_replica() -> None:
    came: list[Call] = []

    async def routed(call: Call, context: FakeContext) -> bytes:
        came.append(call)
        return b"answer"

    answer = asyncio.run(proxied(EXPLAIN, unary_unary=routed).unary_unary(b"\xff", FakeContext(2.5)))
    assert answer == b"answer"
    assert came == [Call(EXPLAIN, b"\xff", 2.5)]


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE])
def test_where_no_replica_answered_the_caller_is_told_to_try_again_and_nothing_of_the_inside(
    code: grpc.StatusCode,
) -> None:
    context = ended(code, TRACE)
    assert context.code() is grpc.StatusCode.UNAVAILABLE
    assert str(context.details()).startswith("no replica answered")
    assert "192.0.2.7" not in repr(context.said)


def test_more_calls_than_may_wait_are_refused_with_the_time_of_another_try() -> None:
    context = ended(grpc.StatusCode.RESOURCE_EXHAUSTED, "Request dropped due to backpressure")
    assert context.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    ((key, details),) = context.trailing_metadata()
    assert key == DETAILS_KEY
    names = [detail.TypeName() for detail in status_pb2.Status.FromString(details).details]
    assert error_details_pb2.RetryInfo.DESCRIPTOR.full_name in names


def test_a_status_of_the_replica_s_own_is_passed_on_as_it_is() -> None:
    metadata = (("request_id", b"7"), (DETAILS_KEY, b"details"))
    context = ended(grpc.StatusCode.INVALID_ARGUMENT, "tensor: is wrong", metadata)
    said = (context.code(), context.details(), context.trailing_metadata())
    assert said == (grpc.StatusCode.INVALID_ARGUMENT, "tensor: is wrong", metadata)


def test_a_client_that_does_not_read_its_answers_is_not_read_from_either() -> None:
    sent: list[int] = []

    async def requests() -> AsyncIterator[bytes]:
        for number in range(1000):
            sent.append(number)
            yield b"request"

    async def greedy(messages: AsyncIterator[bytes], context: FakeContext) -> AsyncIterator[bytes]:
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        async def work() -> None:  # takes whatever it can have, as a replica does
            async for message in messages:
                answers.put_nowait(message)

        working = asyncio.create_task(work())
        for _ in range(1000):
            yield await answers.get()
        await working

    async def ask() -> None:
        answers = proxied(STREAM, stream_stream=greedy).stream_stream(requests(), FakeContext())
        await anext(answers)
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(sent) == IN_A_STREAM + 1  # one is at the door
        assert len([answer async for answer in answers]) == 999

    asyncio.run(ask())


def test_without_ray_in_between_a_call_says_so() -> None:
    async def call() -> str:
        server = grpc.aio.server()
        add_services(object(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await channel.unary_unary(EXPLAIN)(b"", timeout=10)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        finally:
            await server.stop(0)
        return ""

    assert asyncio.run(call()).startswith("UNIMPLEMENTED: this version of Ray Serve")


def test_a_replica_has_every_call_of_both_services() -> None:
    explain = pb.DESCRIPTOR.services_by_name["ExplainService"]
    inference = OPEN_INFERENCE.services_by_name["GRPCInferenceService"]
    calls = {method.name for service in (explain, inference) for method in service.methods} | {"Check"}
    assert calls <= set(vars(Replica))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"processes": 2}, "replicas take the place of processes"),
        ({"model_control": True}, "one replica of several"),
        ({"port": 0}, "takes no port for 0"),
        ({"tls_certificate": "c", "tls_key": "k"}, "ask nobody who they are"),
        ({"tokens": "t"}, "ask nobody who they are"),
        ({"replicas": 3, "max_replicas": 2}, "expected 3"),
        ({"replica": 3}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_with_replicas_are_refused(setting: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        RaySettings(repository=Path("models"), **setting)


def test_a_replica_has_as_many_workers_as_cores_unless_told_otherwise() -> None:
    assert RaySettings(repository=Path("models"), cpus_per_replica=3).of_replica().workers == 3
    assert RaySettings(repository=Path("models"), cpus_per_replica=0.5).of_replica().workers == 1
    assert RaySettings(repository=Path("models"), cpus_per_replica=3, workers=2).of_replica().workers == 2
