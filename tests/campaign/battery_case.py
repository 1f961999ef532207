"""One case of the battery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message

from tests.campaign.wire import EXPLAIN, OIP, Reply, ask

INVALID, NOT_FOUND, OK = "INVALID_ARGUMENT", "NOT_FOUND", "OK"
QUICK = 1.0  # seconds, for what must be refused before it is read


def anything(data: bytes) -> str:
    """Accept every answer."""
    return ""


@dataclass(frozen=True)
class Case:
    """A call and what must come of it.

    Attributes:
        name: what is wrong with it, or right.
        call: makes it.
        codes: names of the statuses that are right.
        word: what the sentence must hold, in either case.
        check: says what is wrong with an answer, "" if nothing.
        explained: whether google.rpc details are owed; gRPC's own refusals have none.
        server: which of the bench's servers.
        seconds: how long it may take.
    """

    name: str
    call: Callable[[grpc.Channel], Reply]
    codes: tuple[str, ...]
    word: str = ""
    check: Callable[[bytes], str] = anything
    explained: bool = True
    server: str = "open"
    seconds: float = 10.0


def sent(method: str, request: Message | bytes, seconds: float = 20) -> Callable[[grpc.Channel], Reply]:
    """Return a unary call of that request."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return lambda channel: ask(channel, method, data, seconds)


def inferred(name: str, request: Message | bytes, code: str, word: str = "", **more: object) -> Case:
    """Return a case of ModelInfer."""
    return Case(name, sent(OIP + "ModelInfer", request), (code,), word, **more)


def explained(name: str, request: Message | bytes, code: str, word: str = "", **more: object) -> Case:
    """Return a case of Explain."""
    return Case(f"explain: {name}", sent(EXPLAIN + "Explain", request), (code,), word, **more)
