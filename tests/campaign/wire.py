"""Calls as bytes, so that what no library would send can be sent too, and what came back as one value."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

OIP = "/inference.GRPCInferenceService/"
EXPLAIN = "/pellucid.v1.ExplainService/"
HEALTH = "/grpc.health.v1.Health/"
DETAILS_KEY = "grpc-status-details-bin"
MAX_ERROR_BYTES = 4096
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)
NEVER = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
REVEALING = ("Traceback", ".py", "site-packages", "/tmp/", "/home/", "/root/", "/usr/", "0x7f")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call answered.

    Attributes:
        code: the gRPC status.
        text: its sentence.
        details: a serialised google.rpc.Status; empty where none came.
        data: the answer's bytes; empty for an error.
    """

    code: grpc.StatusCode
    text: str = ""
    details: bytes = b""
    data: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self.code is grpc.StatusCode.OK


def failed(error: grpc.RpcError) -> Reply:
    """Return an error as a Reply."""
    details = next((value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY), b"")
    return Reply(error.code(), error.details() or "", details)


def ask(channel: grpc.Channel, method: str, data: bytes, seconds: float = 20) -> Reply:
    """Call a method and wait."""
    try:
        return Reply(grpc.StatusCode.OK, data=channel.unary_unary(method)(data, timeout=seconds))
    except grpc.RpcError as error:
        return failed(error)


def ask_stream(channel: grpc.Channel, method: str, messages: Iterable[bytes], seconds: float = 20) -> list[Reply]:
    """Send messages on a stream and return what came, the failure last if it failed."""
    replies = []
    try:
        for data in channel.stream_stream(method)(iter(messages), timeout=seconds):
            replies.append(Reply(grpc.StatusCode.OK, data=data))  # noqa: PERF401 - what came before a failure counts
    except grpc.RpcError as error:
        replies.append(failed(error))
    return replies


async def ask_aio(channel: grpc.aio.Channel, method: str, data: bytes, seconds: float | None = 20) -> Reply:
    """Call a method without blocking the others."""
    try:
        return Reply(grpc.StatusCode.OK, data=await channel.unary_unary(method)(data, timeout=seconds))
    except grpc.aio.AioRpcError as error:
        return failed(error)


def aio_channel(address: str, *more: tuple[str, int | str]) -> grpc.aio.Channel:
    """Return a channel with a connection of its own and no limits."""
    return grpc.aio.insecure_channel(address, options=[*OPTIONS, *more])


def offences(reply: Reply, *, explained: bool = True) -> list[str]:
    """Return what is wrong with how an error is told, whatever it is about.

    Args:
        reply: what came.
        explained: whether details are owed; gRPC's own refusals have none.
    """
    if reply.ok:
        return []
    found = [f"is {reply.code.name}"] if reply.code in NEVER else []
    found += [f"reveals {word!r}" for word in REVEALING if word in reply.text]
    size = len(reply.text.encode()) + len(b64encode(reply.details))
    if size >= MAX_ERROR_BYTES:
        found.append(f"takes {size} bytes")
    return found + (_unexplained(reply) if explained else [])


def _unexplained(reply: Reply) -> list[str]:
    if not reply.details:
        return ["has no details"]
    try:
        status = status_pb2.Status.FromString(reply.details)
    except DecodeError:
        return ["has details that are no google.rpc.Status"]
    if status.code != reply.code.value[0]:
        return [f"has details of code {status.code}"]
    if not any(one.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for one in status.details):
        return ["has no ErrorInfo"]
    return []


def detail(reply: Reply, kind: type[Message]) -> Message | None:
    """Return the first detail of a kind, None where there is none."""
    for one in status_pb2.Status.FromString(reply.details).details:
        if one.Is(kind.DESCRIPTOR):
            message = kind()
            one.Unpack(message)
            return message
    return None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
