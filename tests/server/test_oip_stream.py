"""Streams: answers in order, several requests under way but not without bound, each error its own."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2

from server.oip_messages import SERVICE, oip
from server.oip_stream import answer_in_order
from server.turns import Turns
from tests.server.test_oip_infer import FLOATS, PICTURES, encoded, given


def streamed(address: str, requests: list[dict[str, object]]) -> list[tuple[triton.InferResult, str]]:
    """Send requests over one stream and return results and errors as they come."""
    came: queue.Queue[tuple[object, object]] = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: came.put((result, error)))
        for request in requests:
            client.async_stream_infer("tiny", **request)
        answers = [came.get(timeout=20) for _ in requests]
        client.stop_stream()
    return [(result, "" if error is None else error.message()) for result, error in answers]


def test_a_stream_answers_in_order_what_single_calls_answer(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        alone = [client.infer("tiny", [given(FLOATS[row : row + 1])]).as_numpy("logits") for row in range(4)]
    requests = [
        {
            "inputs": [encoded(PICTURES[row : row + 1]) if row % 2 else given(FLOATS[row : row + 1])],
            "request_id": str(number),
        }
        for number in range(100)
        for row in [number % 4]
    ]
    for number, (result, error) in enumerate(streamed(address, requests)):
        assert not error
        assert result.get_response().id == str(number)
        assert np.array_equal(result.as_numpy("logits"), alone[number % 4])


def test_a_request_that_does_not_fit_spoils_neither_the_stream_nor_its_neighbours(address: str) -> None:
    good, bad = {"inputs": [given(FLOATS)]}, {"inputs": [given(FLOATS + 7)]}
    answers = streamed(address, [good, bad, good, {"inputs": [given(FLOATS)], "model_version": "9"}, good])
    errors = [error for _, error in answers]
    assert [bool(error) for error in errors] == [False, True, False, True, False]
    assert "ranges from 7" in errors[1]
    assert "no version '9'" in errors[3]


def test_an_error_says_which_request_it_is_about(address: str) -> None:
    requests = [oip.ModelInferRequest(model_name="lion", id="one"), oip.ModelInferRequest(model_name="tiny", id="two")]
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        data = [request.SerializeToString() for request in requests] + [b"\xff\xff\xff"]
        answers = [oip.ModelStreamInferResponse.FromString(one) for one in call(iter(data), timeout=10)]
    assert [one.infer_response.id for one in answers] == ["one", "two", ""]
    assert "lion" in answers[0].error_message
    assert answers[1].error_message.startswith("inputs: holds 0 tensors")
    assert answers[2].error_message.startswith("request: is not a inference.ModelInferRequest")


def test_the_answer_says_that_it_is_the_last_where_that_is_asked_for(address: str) -> None:
    marked, plain = streamed(
        address,
        [{"inputs": [given(FLOATS)], "enable_empty_final_response": True}, {"inputs": [given(FLOATS)]}],
    )
    assert marked[0].get_response().parameters["triton_final_response"].bool_param
    assert np.array_equal(marked[0].as_numpy("logits"), plain[0].as_numpy("logits"))
    assert not plain[0].get_response().parameters


def test_the_asyncio_client_streams_too(address: str) -> None:
    async def requests() -> AsyncIterator[dict[str, object]]:
        for number in range(5):
            yield {"model_name": "tiny", "inputs": [given(FLOATS)], "request_id": str(number)}

    async def ask() -> list[str]:
        async with triton_aio.InferenceServerClient(address) as client:
            return [result.get_response().id async for result, _ in client.stream_infer(requests())]

    assert asyncio.run(ask()) == ["0", "1", "2", "3", "4"]


def test_a_stream_that_the_client_leaves_ends_and_others_go_on(address: str) -> None:
    request = service_pb2.ModelInferRequest(model_name="tiny").SerializeToString()
    with grpc.insecure_channel(address) as channel:
        for _ in range(20):
            call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter([request] * 50), timeout=10)
            next(call)
            call.cancel()
    assert not streamed(address, [{"inputs": [given(FLOATS)]}])[0][1]


async def of(*requests: bytes, then: Exception | None = None) -> AsyncIterator[bytes]:
    for request in requests:
        yield request
    if then is not None:
        raise then


def room(most: int) -> Turns:
    return Turns(most, 1)


def test_answers_keep_the_order_of_requests_whichever_is_ready_first() -> None:
    async def later_ones_first(request: bytes) -> bytes:
        await asyncio.sleep(0.02 / (1 + int(request)))
        return request

    async def ask() -> list[bytes]:
        return [one async for one in answer_in_order(of(b"0", b"1", b"2"), later_ones_first, 3, room(3))]

    assert asyncio.run(ask()) == [b"0", b"1", b"2"]


def test_as_many_requests_are_under_way_as_may_be_and_no_more() -> None:
    taken: list[bytes] = []
    under_way, most = 0, 0

    async def source() -> AsyncIterator[bytes]:
        for number in range(20):
            taken.append(b"%d" % number)
            yield taken[-1]

    async def slow(request: bytes) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return request

    async def ask() -> int:
        answers = answer_in_order(source(), slow, 4, room(9))
        await anext(answers)
        await asyncio.sleep(0.02)  # nothing is taken from us meanwhile
        unread = len(taken)
        assert [one async for one in answers] == [b"%d" % number for number in range(1, 20)]
        return unread

    assert asyncio.run(ask()) <= 5
    assert most == 4


def test_many_streams_together_have_no_more_under_way_than_one_and_take_turns() -> None:
    under_way, most = 0, 0
    order: list[int] = []

    async def slow(request: bytes) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        order.append(int(request))
        await asyncio.sleep(0.001)
        under_way -= 1
        return request

    async def stream(number: int, turns: Turns) -> int:
        requests = of(*[b"%d" % number] * 10)
        return len([one async for one in answer_in_order(requests, slow, 16, turns)])

    async def ask() -> list[int]:
        turns = room(4)
        return await asyncio.gather(*(stream(number, turns) for number in range(8)))

    assert asyncio.run(ask()) == [10] * 8
    assert most == 4
    assert len(set(order[8:24])) >= 6  # nobody's requests come in a row


def test_streams_whose_answers_nobody_takes_keep_no_turn() -> None:
    async def echo(request: bytes) -> bytes:
        return request

    async def ask() -> bytes:
        turns = room(2)
        stuck = [answer_in_order(of(*[b"0"] * 30), echo, 5, turns) for _ in range(3)]
        for one in stuck:
            await anext(one)
        await asyncio.sleep(0.01)
        good = answer_in_order(of(b"good"), echo, 5, turns)
        answer = await asyncio.wait_for(anext(good), 5)
        for one in (*stuck, good):
            await one.aclose()
        return answer

    assert asyncio.run(ask()) == b"good"


def test_what_ends_the_requests_ends_the_stream_once_all_that_came_is_answered() -> None:
    async def echo(request: bytes) -> bytes:
        await asyncio.sleep(0.001)
        return request

    async def ask() -> None:
        answers = answer_in_order(of(b"0", b"1", then=ConnectionError("gone")), echo, 3, room(3))
        assert [await anext(answers), await anext(answers)] == [b"0", b"1"]
        with pytest.raises(ConnectionError):
            await anext(answers)

    asyncio.run(ask())


def test_a_stream_that_is_left_cancels_what_is_under_way() -> None:
    cancelled: list[bytes] = []

    async def endless(request: bytes) -> bytes:
        if request == b"0":
            return request
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(request)
            raise
        return request

    async def ask() -> None:
        answers = answer_in_order(of(b"0", b"1", b"2"), endless, 3, room(3))
        await anext(answers)
        await asyncio.sleep(0.01)
        await answers.aclose()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(ask())
    assert sorted(cancelled) == [b"1", b"2"]
