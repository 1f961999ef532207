"""AsyncClient: the analyzers' own values, without holding up the loop; a cancelled task is a cancelled call."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import asdict
from pathlib import Path

import grpc
import numpy as np
import pytest

from analyzers.explain import Wanted, explain
from analyzers.explanation import Explanation
from analyzers.geometry import Frame
from analyzers.manifest import Manifest
from analyzers.pixels import to_model_input
from analyzers.runtime import open_session
from analyzers.what_if import Change
from pellucid.v1 import explain_pb2 as pb
from server.client import AsyncClient
from server.client import Client as BlockingClient
from tests.conftest import SIZE, random_pictures, unsigned
from tests.server.client_fakes import Ask, awaited, blocking, both, echo, fake_server, overloaded
from tests.server.test_answers import as_sent

ENCODED = random_pictures(6, seed=21).encoded
PIXELS = random_pictures(6, seed=21).decoded(SIZE, SIZE)


@pytest.fixture(scope="module")
def computed(tiny_model: bytes) -> list[Explanation]:
    """What the analyzers make of PIXELS in this process, without any server."""
    session = open_session(tiny_model, threads=1)
    manifest = Manifest.from_metadata(session.metadata)
    outputs = session.run_images(manifest, to_model_input(PIXELS))
    frame = Frame(scale_x=1, scale_y=1, width=SIZE, height=SIZE)
    return [explain(manifest, outputs, row, frame, Wanted(evidence=True)) for row in range(len(PIXELS))]


@both
@pytest.mark.parametrize("pictures", [ENCODED, PIXELS, (PIXELS / 255).astype(np.float32)], ids=["files", "uint8", "f4"])
@pytest.mark.parametrize("verb", ["explain", "explain_many"])
def test_answers_are_what_the_analyzers_compute_from_the_same_file(
    ask: Ask, verb: str, pictures: object, address: str, computed: list[Explanation]
) -> None:
    answers = ask(address, verb, pictures, evidence="float32")
    assert len(answers) == len(computed) == 6
    for answer, expected in zip(unsigned(answers), unsigned(computed), strict=True):
        assert as_sent(asdict(answer)) == as_sent(asdict(expected))


def test_both_clients_say_the_same(address: str, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(ENCODED[0])
    for verb, arguments, options in (
        ("explain", (tmp_path / "one.png",), {"rows": ["parts"]}),
        ("what_if", (ENCODED[0], Change("feature", 3)), {"smallest_flip": True}),
        ("list_models", (), {}),
        ("get_model", ("tiny",), {"version": "1"}),
        ("health", (), {}),
    ):
        assert awaited(address, verb, *arguments, **options) == blocking(address, verb, *arguments, **options)


def test_both_clients_have_the_same_verbs() -> None:
    def verbs(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert verbs(AsyncClient) == verbs(BlockingClient)


def test_a_cancelled_task_is_a_cancelled_call() -> None:
    given_up = threading.Event()

    def hang(request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        context.add_callback(given_up.set)
        given_up.wait(20)
        return pb.ExplainResponse()

    async def ask(address: str) -> float:
        async with AsyncClient(address) as client:
            task = asyncio.create_task(client.explain(b"1"))
            while not fake.requests:
                await asyncio.sleep(0.01)
            start = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(given_up.wait, 5)
            return time.monotonic() - start

    with fake_server(hang) as fake:
        assert asyncio.run(ask(fake.address)) < 5
        assert len(fake.requests) == 1  # a cancelled call is not tried again


def test_the_loop_goes_on_while_a_call_waits_for_its_next_try() -> None:
    async def ask(address: str) -> int:
        async with AsyncClient(address) as client:
            task, ticks = asyncio.create_task(client.explain(b"1")), 0
            while not task.done():
                await asyncio.sleep(0.01)
                ticks += 1
            assert task.result()[0].width == 7
            return ticks

    with fake_server(overloaded(1, 0.3)) as fake:
        assert asyncio.run(ask(fake.address)) > 5


def test_a_closed_client_asks_nobody(address: str) -> None:
    async def ask() -> None:
        async with AsyncClient(address) as closed:
            assert await closed.list_models()
        with pytest.raises(ValueError, match="closed channel"):
            await closed.explain(ENCODED[0])

    asyncio.run(ask())


def test_closing_ends_the_calls_of_other_tasks() -> None:
    release = threading.Event()

    def hang(request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        release.wait(20)
        return pb.ExplainResponse()

    async def ask(address: str) -> None:
        client = AsyncClient(address)
        task = asyncio.create_task(client.explain(b"1"))
        while not fake.requests:
            await asyncio.sleep(0.01)
        await client.close()
        with pytest.raises(ValueError, match="closed channel"):
            await task
        release.set()

    with fake_server(hang) as fake:
        asyncio.run(ask(fake.address))


def test_a_client_may_be_made_before_there_is_a_loop() -> None:
    with fake_server(echo) as fake:
        client = AsyncClient(fake.address)

        async def ask() -> int:
            async with client:
                (answer,) = await client.explain(b"9")
                return answer.width

        assert asyncio.run(ask()) == 9
