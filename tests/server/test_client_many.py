"""Many pictures: in order, lazily, several at a time, and one bad picture costs its own answer alone; both clients."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from analyzers.errors import InvalidInputError
from analyzers.explanation import Explanation
from pellucid.v1 import explain_pb2 as pb
from server.client import AsyncClient, Client, ServerError
from server.client_batch import in_batches
from tests.conftest import ROOT, SIZE, png, random_pictures
from tests.server.client_fakes import Ask, both, echo, fake_server

ENCODED = random_pictures(20, seed=5).encoded
NUMBERS = [str(number).encode() for number in range(1, 101)]


def uneven(request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
    """Take longer for every other batch, so that answers come out of order."""
    time.sleep(0.03 if int(request.encoded_images[0]) % 14 == 1 else 0)
    return echo(request, context)


@both
def test_answers_come_in_the_order_of_the_pictures_in_full_batches(ask: Ask) -> None:
    with fake_server(uneven) as fake:
        answers = ask(fake.address, "explain_many", iter(NUMBERS), batch=7, concurrency=5)
    assert [answer.width for answer in answers] == list(range(1, 101))
    assert sorted(len(request.encoded_images) for request in fake.requests) == [2] + [7] * 14


@both
def test_many_answers_are_those_of_explain(ask: Ask, address: str) -> None:
    options = {"model": "tiny", "top_k_classes": 2, "evidence": "float16"}
    assert ask(address, "explain_many", ENCODED, batch=3, **options) == ask(address, "explain", ENCODED, **options)


@both
def test_so_many_requests_are_under_way_at_a_time_and_no_more(ask: Ask) -> None:
    counts, now, lock = [], itertools.count(), threading.Lock()
    under_way: set[int] = set()

    def slow(request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        number = next(now)
        with lock:
            under_way.add(number)
            counts.append(len(under_way))
        time.sleep(0.05)
        with lock:
            under_way.discard(number)
        return echo(request, context)

    with fake_server(slow) as fake:
        ask(fake.address, "explain_many", NUMBERS[:24], batch=2, concurrency=3)
    assert max(counts) == 3


def test_pictures_are_taken_as_they_are_needed() -> None:
    taken = []

    def source() -> Iterator[bytes]:
        for number in itertools.count(1):
            taken.append(number)
            yield str(number).encode()

    with fake_server(echo) as fake, Client(fake.address) as client:
        answers = client.explain_many(source(), batch=4, concurrency=2)
        assert taken == []
        for expected in range(1, 41):
            assert next(answers).width == expected
            assert len(taken) <= expected + 2 * 2 * 4
        answers.close()
    assert len(fake.requests) <= len(taken) / 4


def test_an_asynchronous_source_is_taken_as_it_is_needed() -> None:
    taken = []

    async def source() -> AsyncIterator[bytes]:
        for number in itertools.count(1):
            taken.append(number)
            yield str(number).encode()

    async def ask(address: str) -> None:
        async with AsyncClient(address) as client:
            answers, expected = client.explain_many(source(), batch=4, concurrency=2), 0
            async for answer in answers:
                expected += 1
                assert answer.width == expected
                assert len(taken) <= expected + 2 * 2 * 4
                if expected == 40:
                    break
            await answers.aclose()

    with fake_server(echo) as fake:
        asyncio.run(ask(fake.address))


@both
def test_a_bad_picture_is_returned_in_its_place_and_the_rest_answered(ask: Ask, address: str, tmp_path: Path) -> None:
    pictures = [*ENCODED[:9], b"no picture", *ENCODED[9:12], tmp_path / "gone.png", 7, ENCODED[12]]
    answers = ask(address, "explain_many", pictures, batch=5, on_error="return")
    good = [answer for answer in answers if isinstance(answer, Explanation)]
    assert good == ask(address, "explain", ENCODED[:13])
    refused, missing, unknown = answers[9], answers[13], answers[14]
    assert isinstance(refused, ServerError)
    assert (refused.field, refused.code) == ("encoded_images[0]", grpc.StatusCode.INVALID_ARGUMENT)
    assert refused.__notes__ == ["picture 9"]
    assert isinstance(missing, FileNotFoundError)
    assert missing.__notes__ == [f"picture 13 ({tmp_path / 'gone.png'})"]
    assert isinstance(unknown, InvalidInputError)


@both
def test_pictures_that_only_fail_together_are_asked_about_one_by_one(ask: Ask, address: str) -> None:
    arrays = [np.zeros((SIZE, SIZE, 3), np.uint8), ENCODED[0], np.zeros((SIZE, SIZE, 3), np.float32)]
    assert len(ask(address, "explain_many", arrays)) == 3
    large = [bytes(3_000_000)] * 3

    def together_too_large(request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        return pb.ExplainResponse(explanations=[pb.Explanation(width=len(one)) for one in request.encoded_images])

    with fake_server(together_too_large) as fake:
        answers = ask(fake.address, "explain_many", large, client={"max_message_bytes": 4_000_000})
    assert [answer.width for answer in answers] == [3_000_000] * 3


@both
def test_a_bad_picture_is_raised_when_its_turn_comes(ask: Ask, address: str) -> None:
    with pytest.raises(ServerError, match="is not a picture") as caught:
        ask(address, "explain_many", [*ENCODED[:3], b"no picture", *ENCODED], batch=8)
    assert caught.value.__notes__ == ["picture 3"]


def test_what_comes_before_a_bad_picture_is_answered_first(address: str) -> None:
    with Client(address) as client:
        answers = client.explain_many([*ENCODED[:3], b"no picture", *ENCODED], batch=8)
        assert [next(answers) for _ in range(3)] == client.explain(ENCODED[:3])
        with pytest.raises(ServerError):
            next(answers)


@both
@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"model": "lion"}, grpc.StatusCode.NOT_FOUND),
        ({"rows": ["part"]}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_what_concerns_every_picture_is_raised_at_once(
    ask: Ask, address: str, options: dict[str, object], code: grpc.StatusCode
) -> None:
    with pytest.raises(ServerError) as caught:
        ask(address, "explain_many", ENCODED, on_error="return", **options)
    assert caught.value.code is code


@both
def test_what_came_before_an_error_of_the_source_is_answered_before_it_is_raised(ask: Ask) -> None:
    def source() -> Iterator[bytes]:
        yield from NUMBERS[:10]
        raise RuntimeError("the camera is gone")

    with fake_server(echo) as fake, pytest.raises(RuntimeError, match="the camera is gone"):
        ask(fake.address, "explain_many", source(), batch=4)
    assert sum(len(request.encoded_images) for request in fake.requests) == 10


@both
def test_no_pictures_are_no_answers(ask: Ask) -> None:
    with fake_server(echo) as fake:
        assert ask(fake.address, "explain_many", []) == []
    assert fake.requests == []


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"batch": 0}, InvalidInputError, "batch: is 0"),
        ({"concurrency": 0}, InvalidInputError, "concurrency: is 0"),
        ({"on_error": "ignore"}, InvalidInputError, "on_error: is 'ignore'; expected 'raise' or 'return'"),
        ({"progress": "yes"}, InvalidInputError, "progress: is 'yes'"),
        ({"evidence": "float64"}, InvalidInputError, "evidence: is 'float64'; expected one of float32, float16"),
        ({"modle": "tiny"}, TypeError, "modle"),
    ],
)
def test_a_wrong_argument_is_said_before_any_picture_is_taken(
    kind: type, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        kind("127.0.0.1:1").explain_many(iter(NUMBERS), **options)
    assert words in str(caught.value)


class Hanging:
    """A behaviour that answers the first request and never the others; counts those whose callers gave up."""

    def __init__(self) -> None:
        self.given_up = threading.Semaphore(0)

    def __call__(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        if request.encoded_images[0] != b"1":
            ended = threading.Event()
            context.add_callback(ended.set)
            ended.wait(20)
            self.given_up.release()
        return echo(request, context)

    def all_given_up(self, count: int) -> bool:
        return all(self.given_up.acquire(timeout=5) for _ in range(count))


def test_leaving_the_loop_ends_what_is_under_way_on_the_server_too() -> None:
    hanging = Hanging()
    with fake_server(hanging) as fake, Client(fake.address) as client:
        start = time.monotonic()
        for answer in client.explain_many(NUMBERS, batch=1, concurrency=2):
            assert answer.width == 1
            while len(fake.requests) < 3:
                time.sleep(0.01)
            break
        assert hanging.all_given_up(2)
        assert time.monotonic() - start < 5


def test_cancelling_a_task_ends_its_calls_on_the_server_too() -> None:
    hanging = Hanging()

    async def ask(address: str) -> None:
        async with AsyncClient(address) as client:

            async def all_of_them() -> None:
                async for _ in client.explain_many(NUMBERS, batch=1, concurrency=2):
                    pass

            task = asyncio.create_task(all_of_them())
            while len(fake.requests) < 3:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(hanging.all_given_up, 2)

    with fake_server(hanging) as fake:
        asyncio.run(ask(fake.address))


@both
def test_a_progress_bar_counts_pictures_on_stderr(ask: Ask, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask(address, "explain_many", ENCODED, progress=True)
    captured = capsys.readouterr()
    assert "20/20" in captured.err
    assert captured.out == ""
    ask(address, "explain_many", ENCODED, progress="auto")  # stderr is no terminal here
    assert capsys.readouterr().err == ""


def test_without_rich_there_is_no_bar_and_all_the_answers(address: str) -> None:
    program = f"""
import sys
sys.modules["rich"] = None  # as where it is not installed
from server.client import Client
with Client({address!r}) as client:
    print(len(list(client.explain_many([sys.stdin.buffer.read()] * 3, progress=True))))
"""
    run = subprocess.run(
        [sys.executable, "-c", program], input=png(np.zeros((9, 9, 3), np.uint8)), capture_output=True, cwd=ROOT
    )
    assert (run.stdout, run.stderr) == (b"3\n", b"")


def test_batches_are_full_but_the_last() -> None:
    assert list(in_batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(in_batches(range(6), 3)) == [[0, 1, 2], [3, 4, 5]]
