"""The log: which lines there are, what they say, and the request id that ties them to what a user saw."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from pellucid.v1 import explain_pb2 as pb
from server.app import SERVICE
from server.call import REQUEST_ID_KEY, Call, begin_call, current_call, note_model
from server.client import Client, ServerError
from server.errors import InvalidInputError, failure_of
from server.logs import AccessLog, JsonLines, TextLines
from tests.conftest import random_pictures, running_server

LIST, GET, EXPLAIN = (f"/{SERVICE}/{name}" for name in ("ListModels", "GetModel", "Explain"))


def record(message: str, *arguments: object, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("pellucid.test", level, __file__, 1, message, arguments, None)
    vars(made).update(extra)
    return made


def lines_of(process: subprocess.Popen) -> list[dict[str, Any]]:
    process.terminate()
    return [json.loads(line) for line in process.stderr.read().splitlines()]


def begun(*metadata: tuple[str, str | bytes]) -> Call:
    """Begin a call of which the other tests know nothing."""
    return copy_context().run(begin_call, LIST, metadata, Counter())


def trailing(
    address: str, path: str, request: Message, *metadata: tuple[str, str]
) -> tuple[grpc.StatusCode, dict[str, Any]]:
    with grpc.insecure_channel(address) as channel:
        method = channel.unary_unary(path, request.SerializeToString)
        try:
            _, call = method.with_call(request, metadata=metadata)
        except grpc.RpcError as error:
            call = error
    return call.code(), dict(call.trailing_metadata())


@pytest.mark.parametrize("sent", ["a", "0f3c", "Root=1-67891233-abcdef", "a.b:c/d+e@f_g-h", "x" * 128])
def test_a_request_id_that_the_client_sent_is_kept(sent: str) -> None:
    assert begun(("other", "x"), (REQUEST_ID_KEY, sent)).request_id == sent


@pytest.mark.parametrize("sent", ["", "x" * 129, "a b", "a\nb", 'a"b', "a;b", "\u00e4", "a\x00", "\x1b[31m", b"bytes"])
def test_a_request_id_that_could_harm_a_log_is_replaced(sent: str | bytes) -> None:
    assert re.fullmatch("[0-9a-f]{16}", begun((REQUEST_ID_KEY, sent)).request_id)


def test_made_request_ids_differ() -> None:
    assert len({begun().request_id for _ in range(1000)}) == 1000


def test_a_line_within_a_call_names_it_and_others_do_not() -> None:
    assert current_call() is None
    assert TextLines().format(record("it %s", "works")).endswith(" INFO pellucid.test: it works")
    assert set(json.loads(JsonLines().format(record("x")))) == {"time", "level", "logger", "message", "process"}

    def within() -> None:
        begin_call(EXPLAIN, [(REQUEST_ID_KEY, "r1")], Counter())
        note_model("tiny", "3")
        assert TextLines().format(record("x")).endswith(": x [request r1]")
        said = json.loads(JsonLines().format(record("x", level=logging.ERROR)))
        assert (said["request_id"], said["method"], said["model"], said["level"]) == ("r1", EXPLAIN, "tiny/3", "error")
        assert failure_of(InvalidInputError("a", "b")).details.count(b"r1") == 1

    copy_context().run(within)


def test_nothing_that_a_client_sends_begins_a_line_of_its_own() -> None:
    evil = "x\n2026-01-01 ERROR forged: y\r\x1b[2K\u2028z"
    (line,) = TextLines().format(record("no model %s", evil)).splitlines()
    assert r"x\n2026-01-01 ERROR forged: y\r\x1b[2K\u2028z" in line
    (line,) = JsonLines().format(record("no model %s", evil)).splitlines()
    assert json.loads(line)["message"] == f"no model {evil}"


def test_a_traceback_is_part_of_its_record() -> None:
    made = record("it failed")
    try:
        raise KeyError("gone")
    except KeyError as error:
        made.exc_info = (KeyError, error, error.__traceback__)
    (line,) = JsonLines().format(made).splitlines()
    assert "KeyError: 'gone'" in json.loads(line)["exception"]
    assert TextLines().format(made).splitlines()[-1] == "KeyError: 'gone'"


class Told:
    """The part of a call's context that a log reads."""

    def details(self) -> str:
        return "a sentence"


@pytest.mark.parametrize(
    ("status", "quiet", "talkative"),
    [
        ("OK", "debug", "info"),
        ("CANCELLED", "debug", "info"),
        ("RESOURCE_EXHAUSTED", "debug", "info"),
        ("UNAVAILABLE", "debug", "info"),
        ("NOT_FOUND", "info", "info"),
        ("INTERNAL", "info", "info"),
        ("UNAUTHENTICATED", "warning", "warning"),
        ("PERMISSION_DENIED", "warning", "warning"),
    ],
)
def test_what_overload_has_many_of_is_quiet_and_what_failed_is_not(
    status: str, quiet: str, talkative: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "pellucid.access"):
        for level in (logging.DEBUG, logging.INFO):
            AccessLog(level).note(Call(LIST, "r1"), status, 0.25, Told())
    assert [each.levelname.lower() for each in caplog.records] == [quiet, talkative]
    assert caplog.records[0].duration_ms == 250


@pytest.fixture(scope="module")
def talkative(repository: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server that logs each call as JSON; of one module, which reads its log once."""
    with running_server(
        "--repository", str(repository), "--access-log", "--log-format", "json", "--tokens-in-clear"
    ) as running:
        yield running


def test_a_call_has_one_line_and_its_id_goes_back_to_the_client(talkative: tuple[str, subprocess.Popen]) -> None:
    address, process = talkative
    picture = random_pictures(1).encoded
    assert trailing(address, LIST, pb.ListModelsRequest(), (REQUEST_ID_KEY, "mine-1"))[1][REQUEST_ID_KEY] == "mine-1"
    made = trailing(address, EXPLAIN, pb.ExplainRequest(encoded_images=picture), (REQUEST_ID_KEY, "x" * 500))
    unknown = trailing(address, GET, pb.GetModelRequest(model="lion\nforged"), (REQUEST_ID_KEY, "mine-3"))
    assert unknown[0] is grpc.StatusCode.NOT_FOUND
    assert unknown[1][REQUEST_ID_KEY] == "mine-3"
    with Client(address, metadata=[(REQUEST_ID_KEY, "mine-4")]) as client, pytest.raises(ServerError) as caught:
        client.explain(b"no picture")
    assert caught.value.request_id == "mine-4"
    lines = [line for line in lines_of(process) if line["logger"] == "pellucid.access"]
    ids = ["mine-1", made[1][REQUEST_ID_KEY], "mine-3", "mine-4"]
    assert [line["request_id"] for line in lines] == ids
    assert [line["method"] for line in lines] == [LIST, EXPLAIN, GET, EXPLAIN]
    assert [line.get("model") for line in lines] == [None, "tiny/1", None, "tiny/1"]
    assert [line["status"] for line in lines] == ["OK", "OK", "NOT_FOUND", "INVALID_ARGUMENT"]
    assert all(0 < line["duration_ms"] < 60_000 for line in lines)
    assert lines[2]["error"].startswith("model: there is no model 'lion")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"]) for line in lines)


def test_by_default_only_calls_that_failed_have_a_line(repository: Path) -> None:
    with running_server("--repository", str(repository)) as (address, process):
        assert trailing(address, LIST, pb.ListModelsRequest())[0] is grpc.StatusCode.OK
        code, sent = trailing(address, GET, pb.GetModelRequest(model="lion"), (REQUEST_ID_KEY, "mine"))
        assert code is grpc.StatusCode.NOT_FOUND
        assert sent[REQUEST_ID_KEY] == "mine"
        process.terminate()
        said = process.stderr.read()
    assert "ListModels" not in said
    (line,) = [line for line in said.splitlines() if "GetModel" in line]
    assert re.search(r" INFO pellucid\.access: \S+GetModel NOT_FOUND in \S+ ms error=model: .* \[request mine\]$", line)
