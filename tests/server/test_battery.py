"""Every rule of both protocols has its status and its sentence, with details that a program can read."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.campaign.battery import CASES, Bench, bench, problems, same_names
from tests.campaign.battery_case import Case
from tests.campaign.wire import Reply, offences


@pytest.fixture(scope="module")
def servers() -> Iterator[Bench]:
    with bench() as running:
        yield running


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_call_has_the_status_and_the_sentence_that_it_should(servers: Bench, case: Case) -> None:
    assert problems(case, servers) == []


def test_the_servers_are_well_after_all_of_it(servers: Bench) -> None:
    assert [fault for server in servers.servers.values() for fault in server.faults()] == []


def test_every_case_has_a_name_of_its_own() -> None:
    assert same_names() == set()
    assert len(CASES) >= 150


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(grpc.StatusCode.UNKNOWN, "x"), "is UNKNOWN"),
        (Reply(grpc.StatusCode.INTERNAL, "x"), "is INTERNAL"),
        (Reply(grpc.StatusCode.NOT_FOUND, "Traceback (most recent call last)"), "reveals 'Traceback'"),
        (Reply(grpc.StatusCode.NOT_FOUND, "x" * 5000), "takes 5000 bytes"),
        (Reply(grpc.StatusCode.NOT_FOUND, "x"), "has no details"),
        (Reply(grpc.StatusCode.NOT_FOUND, "x", b"\x08\x03"), "has details of code 3"),
        (Reply(grpc.StatusCode.NOT_FOUND, "x", b"\x08\x05"), "has no ErrorInfo"),
    ],
)
def test_an_error_that_is_told_badly_is_noticed(reply: Reply, words: str) -> None:
    assert words in offences(reply)
