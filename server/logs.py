"""The log: text or JSON objects on stderr, each line with the request that it is about, and a line for each call."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import grpc.aio

from server.call import Call, current_call
from server.errors import clip

Format = Literal["text", "json"]

access = logging.getLogger("pellucid.access")

FIELDS = ("method", "model", "caller", "status", "duration_ms", "error")
MAX_ERROR_BYTES = 300
# Overload and going away are many at a time, and logging them would cost what overload is short of.
EXPECTED = {"OK", "CANCELLED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
SUSPICIOUS = {"UNAUTHENTICATED", "PERMISSION_DENIED"}


def write_log(level: str, form: Format) -> None:
    """Log to stderr.

    Args:
        level: the lowest that is written, such as "info".
        form: how a record is written.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class TextLines(logging.Formatter):
    """`TIME LEVEL LOGGER: MESSAGE [request ID]`; what a client sent cannot begin a line of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's own name)
        """Return the record without its traceback, in one line."""
        text = super().formatMessage(record)
        if not text.isprintable():
            text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        call = current_call()
        return text if call is None else f"{text} [request {call.request_id}]"


class JsonLines(logging.Formatter):
    """A JSON object for each record, in a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record with what is known of the call that it belongs to."""
        call = current_call()
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        if call is not None:
            fields |= {"request_id": call.request_id, "method": call.method, "model": call.model, "caller": call.caller}
        given = vars(record)
        fields |= {name: given[name] for name in FIELDS if name in given}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in fields.items() if value != ""}, default=str)


class AccessLog:
    """Notes each call when it is over.

    Args:
        answered: the level of calls that were answered; of others it is at least info.
    """

    def __init__(self, answered: int) -> None:
        self._answered = answered

    def note(self, call: Call, status: str, seconds: float, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Write the line, if it is to be written at all.

        Args:
            call: what was called.
            status: the name of the gRPC status.
            seconds: how long it took.
            context: knows the sentence of an error.
        """
        level = self._level(status)
        if not access.isEnabledFor(level):
            return
        error = "" if status in ("OK", "CANCELLED") else clip(context.details() or "", MAX_ERROR_BYTES)
        values = (call.method, call.model, call.caller, status, round(1000 * seconds, 3), error)
        extra = dict(zip(FIELDS, values, strict=True))
        about = "".join(f" {name}={extra[name]}" for name in ("model", "caller", "error") if extra[name])
        access.log(level, "%s %s in %.3g ms%s", call.method, status, 1000 * seconds, about, extra=extra)

    def _level(self, status: str) -> int:
        if status in EXPECTED:
            return self._answered
        return logging.WARNING if status in SUSPICIOUS else max(logging.INFO, self._answered)
