"""Cases of ModelStreamInfer: errors stand in the answers, and the stream goes on."""

from __future__ import annotations

import grpc
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as oip

from tests.campaign.battery_case import INVALID, OK, Case
from tests.campaign.requests import floats, infer
from tests.campaign.wire import OIP, Reply, ask_stream

STREAM = OIP + "ModelStreamInfer"
MIB = 2**20


def streamed(name: str, messages: list[Message | bytes], expected: list[str]) -> Case:
    """Return a case whose stream must answer, for each message, "" or a word of its error."""
    data = [one if isinstance(one, bytes) else one.SerializeToString() for one in messages]

    def call(channel: grpc.Channel) -> Reply:
        replies = ask_stream(channel, STREAM, data)
        if replies and not replies[-1].ok:
            return replies[-1]
        answers = [oip.ModelStreamInferResponse.FromString(one.data) for one in replies]
        said = [one.error_message for one in answers]
        right = len(said) == len(expected) and all(
            (word.lower() in text.lower() if word else not text) for word, text in zip(expected, said, strict=True)
        )
        empty = [one for one in answers if not one.error_message and not one.infer_response.raw_output_contents]
        wrong = not right or bool(empty)
        return Reply(grpc.StatusCode.OK, data=str([text[:80] for text in said]).encode() if wrong else b"")

    return Case(f"stream: {name}", call, (OK,), check=bytes.decode)


def numbered(count: int) -> list[oip.ModelInferRequest]:
    """Return valid requests whose ids count."""
    return [floats(id=str(number)) for number in range(count)]


def in_order(channel: grpc.Channel) -> Reply:
    """Send 50 requests at once and see whether the answers keep their order."""
    replies = ask_stream(channel, STREAM, [one.SerializeToString() for one in numbered(50)])
    ids = [oip.ModelStreamInferResponse.FromString(one.data).infer_response.id for one in replies if one.ok]
    right = ids == [str(number) for number in range(50)]
    return Reply(grpc.StatusCode.OK, data=b"" if right else str(ids).encode())


def junk(channel: grpc.Channel) -> Reply:
    """Send what is no message: a status or an error in the answers, either says so."""
    replies = ask_stream(channel, STREAM, [b"\xff\xff\xff\x0f not a message"])
    if not replies or not replies[-1].ok:
        return replies[-1] if replies else Reply(grpc.StatusCode.OK)
    text = oip.ModelStreamInferResponse.FromString(replies[0].data).error_message
    return Reply(grpc.StatusCode.INVALID_ARGUMENT if text else grpc.StatusCode.OK, text)


STREAM_CASES: tuple[Case, ...] = (
    streamed("nothing", [], []),
    streamed("three requests", [floats(), floats(2), floats()], ["", "", ""]),
    streamed("an error between two answers", [floats(), floats(model="lion"), floats()], ["", "lion", ""]),
    streamed("no input", [infer(), floats()], ["input", ""]),
    streamed("an id of 1 MB", [floats(id="x" * MIB), floats()], ["id", ""]),
    Case("stream: 50 at once in order", in_order, (OK,), check=bytes.decode),
    Case("stream: junk", junk, (INVALID,), "parsed", explained=False),
)
