"""What a client says when a call fails: the server's sentence, and its details as values; for both clients."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from pellucid.v1 import explain_pb2 as pb
from server.client import ServerError
from server.errors import DETAILS_KEY
from tests.conftest import random_pictures
from tests.server.client_fakes import Ask, both, fake_server

ENCODED = random_pictures(2, seed=2).encoded


@both
def test_an_unknown_model_is_named(ask: Ask, address: str) -> None:
    with pytest.raises(ServerError) as caught:
        ask(address, "explain", ENCODED, model="lion")
    error = caught.value
    assert (error.code, error.reason, error.resource) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL", "lion")
    assert (error.field, error.retry_seconds, error.tries) == ("", None, 1)


@both
def test_the_field_that_is_wrong_is_named(ask: Ask, address: str) -> None:
    with pytest.raises(ServerError) as caught:
        ask(address, "explain", [ENCODED[0], b"no picture"])
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT")
    assert (error.field, error.resource) == ("encoded_images[1]", "")


def with_details(details: bytes, text: str = "odd") -> Callable[..., pb.ExplainResponse]:
    def behave(request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        context.set_trailing_metadata(((DETAILS_KEY, details),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)

    return behave


@both
@pytest.mark.parametrize("details", [b"", b"\xff\xff\xff", b"\x1a\x02\x0a\x00"], ids=["empty", "broken", "no type"])
def test_details_that_cannot_be_read_leave_status_and_sentence(ask: Ask, details: bytes) -> None:
    with fake_server(with_details(details)) as fake, pytest.raises(ServerError) as caught:
        ask(fake.address, "explain", b"1")
    assert str(caught.value) == "FAILED_PRECONDITION: odd"
    assert (caught.value.reason, caught.value.retry_seconds) == ("", None)


@both
def test_a_strange_server_s_long_words_become_one_short_line(ask: Ask) -> None:
    with fake_server(with_details(b"", "a\nb\r\n" + "x" * 2000)) as fake, pytest.raises(ServerError) as caught:
        ask(fake.address, "explain", b"1")
    assert str(caught.value).startswith("FAILED_PRECONDITION: a b xxx")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@both
def test_a_request_larger_than_the_limit_is_never_sent_twice(ask: Ask) -> None:
    with fake_server(lambda request, context: pb.ExplainResponse()) as fake, pytest.raises(ServerError) as caught:
        ask(fake.address, "explain", bytes(200_000), client={"max_message_bytes": 100_000})
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in str(caught.value)
    assert fake.requests == []
    assert caught.value.tries == 1
