"""Which calls are sent again, when, how often, and never beyond the deadline; for both clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from pellucid.v1 import explain_pb2 as pb
from server.client import Client, ServerError
from tests.server.client_fakes import Ask, Behaviour, both, echo, failing, fake_server, overloaded

PHOTOGRAPH = bytes(300_000)  # more than gRPC's own retries would keep


@both
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_a_call_that_a_server_going_away_did_not_answer_is_sent_again(ask: Ask, code: grpc.StatusCode) -> None:
    with fake_server(failing(2, code)) as fake:
        (answer,) = ask(fake.address, "explain", PHOTOGRAPH)
    assert answer.width == 7
    assert len(fake.requests) == 3
    assert fake.requests[0] == fake.requests[2]
    first, second = (after - before for before, after in zip(fake.times, fake.times[1:], strict=False))
    assert first >= 0.05  # half to all of 0.1 s, then of 0.2 s
    assert second >= 0.1


@both
def test_tries_end_with_the_number_that_is_allowed_and_the_error_says_it(ask: Ask) -> None:
    with fake_server(failing(9, grpc.StatusCode.UNAVAILABLE)) as fake, pytest.raises(ServerError) as caught:
        ask(fake.address, "explain", b"1", client={"retries": 2})
    assert len(fake.requests) == 3
    assert caught.value.tries == 3
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert str(caught.value).endswith("(tried 3 times)")


@both
@pytest.mark.parametrize(
    "behaviour",
    [
        lambda: failing(1, grpc.StatusCode.UNAVAILABLE),
        lambda: failing(1, grpc.StatusCode.CANCELLED),
        lambda: overloaded(1, 0.01),
    ],
    ids=["unavailable", "cancelled", "overloaded"],
)
def test_without_retries_a_call_is_sent_once(ask: Ask, behaviour: Callable[[], Behaviour]) -> None:
    with fake_server(behaviour()) as fake, pytest.raises(ServerError) as caught:
        ask(fake.address, "explain", b"1", client={"retries": 0})
    assert len(fake.requests) == caught.value.tries == 1


@both
@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # without a word when to come back: too large, and will be
    ],
)
def test_what_another_try_cannot_mend_is_sent_once(ask: Ask, code: grpc.StatusCode) -> None:
    with fake_server(failing(1, code)) as fake, pytest.raises(ServerError) as caught:
        ask(fake.address, "explain", b"1")
    assert len(fake.requests) == 1
    assert caught.value.code is code


@both
def test_an_overloaded_server_says_when_to_come_back_and_is_obeyed(ask: Ask) -> None:
    with fake_server(overloaded(2, 0.3)) as fake:
        (answer,) = ask(fake.address, "explain", b"1")
    assert answer.width == 7
    waits = [after - before for before, after in zip(fake.times, fake.times[1:], strict=False)]
    assert len(waits) == 2
    assert all(0.3 <= wait < 1 for wait in waits)


@both
def test_where_the_deadline_comes_before_the_next_try_the_error_comes_at_once(ask: Ask) -> None:
    with fake_server(overloaded(9, 20.0)) as fake:
        start = time.monotonic()
        with pytest.raises(ServerError) as caught:
            ask(fake.address, "explain", b"1", timeout_seconds=3)
        assert time.monotonic() - start < 1.5
    assert len(fake.requests) == 1
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert caught.value.retry_seconds == 20.0


@both
def test_one_deadline_holds_for_all_tries_and_the_waits_between(ask: Ask) -> None:
    left: list[float] = []

    def slow(request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        left.append(context.time_remaining())
        time.sleep(0.15)
        context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    with fake_server(slow) as fake:
        start = time.monotonic()
        with pytest.raises(ServerError):
            ask(fake.address, "explain", b"1", client={"retries": 100, "timeout_seconds": 0.8})
        assert time.monotonic() - start < 1.5
    assert len(left) >= 2
    assert left == sorted(left, reverse=True)
    assert 0.85 > left[0] > left[-1] + 0.15


@both
def test_a_call_may_have_a_deadline_of_its_own(ask: Ask) -> None:
    def mute(request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        time.sleep(0.6)
        return pb.ExplainResponse()

    with fake_server(mute) as fake, pytest.raises(ServerError) as caught:
        ask(fake.address, "explain", b"1", timeout_seconds=0.2)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "within 0.2 s; a longer timeout" in str(caught.value)


def test_closing_ends_a_call_that_waits_for_its_next_try() -> None:
    with fake_server(overloaded(99, 20.0)) as fake:
        client, errors = Client(fake.address), []

        def ask() -> None:
            try:
                client.explain(b"1")
            except ValueError as error:
                errors.append(str(error))

        asking = threading.Thread(target=ask)
        asking.start()
        while not fake.requests:
            time.sleep(0.01)
        time.sleep(0.1)
        client.close()
        asking.join(3)
        assert not asking.is_alive()
    assert errors == ["the client is closed; a closed channel asks nobody"]


@both
def test_a_server_that_starts_late_is_waited_for(ask: Ask) -> None:
    with fake_server(echo) as fake:
        address = fake.address
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.extend(ask(address, "explain", b"5")))
    asking.start()
    time.sleep(0.4)
    with fake_server(echo, address=address):
        asking.join(10)
    assert [answer.width for answer in answers] == [5]
