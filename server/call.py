"""The call that is being answered: known to whoever logs, counts, traces or fails within it."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

REQUEST_ID_KEY = "x-request-id"
MAX_STAGES = 64  # of a traced call; a stream may have any number of requests

Metadata = Sequence[tuple[str, str | bytes]]

_SAFE = re.compile(r"[A-Za-z0-9._:=/+@-]{1,128}")
_call: ContextVar[Call | None] = ContextVar("call", default=None)


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a call.

    Attributes:
        name: decode, queue, run or encode.
        began: in seconds of `time.monotonic`.
        ended: the same.
        numbers: what is worth knowing of it.
    """

    name: str
    began: float
    ended: float
    numbers: Mapping[str, int]


@dataclass(eq=False, slots=True)
class Call:
    """One call.

    Attributes:
        method: "/package.Service/Method".
        request_id: what the client called it, or else what we do.
        refused: counts refusals by reason.
        caller: whose token or certificate came with it; empty where none was asked for.
        model: "NAME/VERSION" of what answers, of a stream the last; empty before that is known.
        parent: whose span its own belongs to; None where it is not traced.
        stages: what was done for it, in any order; only where it is traced.
    """

    method: str
    request_id: str = ""
    refused: Counter[str] = field(default_factory=Counter)
    caller: str = ""
    model: str = ""
    parent: object = None
    stages: list[Stage] = field(default_factory=list)

    def stage(self, name: str, began: float, ended: float, **numbers: int) -> None:
        """Remember a part of it; any thread may say so."""
        if len(self.stages) < MAX_STAGES:
            self.stages.append(Stage(name, began, ended, numbers))


def begin_call(method: str, metadata: Metadata, refused: Counter[str]) -> Call:
    """Return the call that begins here, in this task and those that it starts."""
    call = Call(method, _request_id(metadata), refused)
    _call.set(call)
    return call


def current_call() -> Call | None:
    """Return the call that is being answered; None outside of any."""
    return _call.get()


def traced() -> Call | None:
    """Return the call that is being answered if it is traced."""
    call = _call.get()
    return call if call is not None and call.parent is not None else None


def note_model(name: str, version: str) -> None:
    """Say which model answers the call."""
    if (call := _call.get()) is not None:
        call.model = f"{name}/{version}"


def refused(reason: str) -> None:
    """Count an error that a client gets, by the reason in its details."""
    if (call := _call.get()) is not None:
        call.refused[reason] += 1


def _request_id(metadata: Metadata) -> str:
    """Return the client's own name for the call; one that is too long or odd is replaced, for it goes into the log."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _SAFE.fullmatch(value):
            return value
    return f"{random.getrandbits(64):016x}"
