"""What stands before every call: it fails closed, forgets methods that are not there, and notes how each call ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from pellucid.v1 import explain_pb2 as pb
from server.authorise import Access, Authoriser
from server.calls import Calls
from server.edge import Gate, GateLimits, unary
from server.errors import INTERNAL_TEXT
from server.logs import AccessLog

PATH = "/test.Service/Ask"


@asynccontextmanager
async def asking(calls: Calls, seconds: float = 0.0) -> AsyncIterator[grpc.aio.Channel]:
    """Run a watched server whose one method answers after so many seconds."""

    async def answer(request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        await asyncio.sleep(seconds)
        return pb.ListModelsResponse()

    server = grpc.aio.server()
    handler = unary(pb.ListModelsRequest, answer, Gate(GateLimits(10, 1 << 20, 60, 1)))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", calls.watched("test.Service", {"Ask": handler})),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


def broken() -> Access:
    raise KeyError("secret of the server")


def test_nobody_is_let_in_where_it_cannot_be_found_out_who_it_is(caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> grpc.aio.AioRpcError:
        async with asking(Calls(Authoriser(broken), AccessLog(logging.DEBUG))) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(PATH)(b"")
            return caught.value

    error = asyncio.run(ask())
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, INTERNAL_TEXT)
    assert "secret of the server" in caplog.text


def test_a_method_that_is_not_there_is_unimplemented_and_not_counted() -> None:
    calls = Calls(None, AccessLog(logging.DEBUG))

    async def ask() -> None:
        async with asking(calls) as channel:
            for number in range(20):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(f"/test.Service/No{number}")(b"")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert await channel.unary_unary(PATH)(b"") == b""

    asyncio.run(ask())
    assert calls.codes == {("Ask", "OK"): 1}


@pytest.mark.parametrize(
    ("seconds", "data", "timeout", "status"),
    [(0, b"", 30, "OK"), (0, b"\xff", 30, "INVALID_ARGUMENT"), (30, b"", 0.3, "DEADLINE_EXCEEDED")],
)
def test_how_a_call_ended_is_noted(
    seconds: float, data: bytes, timeout: float, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask() -> None:
        async with asking(Calls(None, AccessLog(logging.INFO)), seconds) as channel:
            try:
                await channel.unary_unary(PATH)(data, timeout=timeout)
            except grpc.aio.AioRpcError:
                await until(lambda: noted(caplog))

    with caplog.at_level(logging.INFO):
        asyncio.run(ask())
    assert noted(caplog) in ([status], ["CANCELLED"] if status == "DEADLINE_EXCEEDED" else [])


def test_a_call_that_the_client_takes_back_is_noted_as_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        async with asking(Calls(None, AccessLog(logging.INFO)), 30) as channel:
            call = channel.unary_unary(PATH)(b"")
            await asyncio.sleep(0.3)
            call.cancel()
            await until(lambda: noted(caplog))

    with caplog.at_level(logging.INFO):
        asyncio.run(ask())
    assert noted(caplog) == ["CANCELLED"]


def noted(caplog: pytest.LogCaptureFixture) -> list[str]:
    found: list[Any] = [record for record in caplog.records if record.name == "pellucid.access"]
    return [record.status for record in found]


async def until(true: Any) -> None:  # noqa: ANN401
    for _ in range(300):
        if true():
            return
        await asyncio.sleep(0.1)
    pytest.fail("it did not happen in time")
