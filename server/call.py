"""The call that is being answered: known to whoever logs or fails within it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass

REQUEST_ID_KEY = "x-request-id"

_SAFE = re.compile(r"[A-Za-z0-9._:=/+@-]{1,128}")
_call: ContextVar[Call | None] = ContextVar("call", default=None)


@dataclass(slots=True)
class Call:
    """One call.

    Attributes:
        method: "/package.Service/Method".
        request_id: what the client called it, or else what we do.
        caller: whose token or certificate came with it; empty where none was asked for.
        model: "NAME/VERSION" of what answers, of a stream the last; empty before that is known.
    """

    method: str
    request_id: str
    caller: str = ""
    model: str = ""


def begin_call(method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Call:
    """Return the call that begins here, in this task and those that it starts."""
    call = Call(method, _request_id(metadata))
    _call.set(call)
    return call


def current_call() -> Call | None:
    """Return the call that is being answered; None outside of any."""
    return _call.get()


def note_model(name: str, version: str) -> None:
    """Say which model answers the call."""
    if (call := _call.get()) is not None:
        call.model = f"{name}/{version}"


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the client's own name for the call; one that is too long or odd is replaced, for it goes into the log."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _SAFE.fullmatch(value):
            return value
    return f"{random.getrandbits(64):016x}"
