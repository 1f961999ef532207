"""Errors of the server, and the one place that knows gRPC status codes and google.rpc error details."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from analyzers.errors import InvalidInputError, PellucidError
from server.call import current_call

if TYPE_CHECKING:
    from google.protobuf.message import Message

DOMAIN = "pellucid.v1"
REQUEST_ID = "request_id"  # in the metadata of an ErrorInfo
DETAILS_KEY = "grpc-status-details-bin"
INTERNAL_TEXT = "internal error; the server's log says more"
MAX_TEXT_BYTES = 600  # twice in the details and once, percent-encoded, beside them: under 4 KB in all


class UnknownModelError(PellucidError):
    """No such model or version, or it is not loaded.

    Attributes:
        name: what was asked for, "NAME" or "NAME/VERSION".
    """

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(sentence)
        self.name = name


class RefusedModelError(PellucidError):
    """The model is there but its file was refused.

    Attributes:
        name: what was asked for, "NAME/VERSION".
    """

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(sentence)
        self.name = name


class OverloadedError(PellucidError):
    """There is more to do than can be done in time.

    Attributes:
        retry_seconds: when it is worth another try.
    """

    def __init__(self, retry_seconds: float, sentence: str) -> None:
        super().__init__(sentence)
        self.retry_seconds = retry_seconds


class TooLargeError(PellucidError):
    """A message is larger than one may be; the plain server leaves this to gRPC."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the message has {size} bytes; at most {limit} are taken")


class ExpiredError(PellucidError):
    """The deadline passed, or a run took longer than one may."""


class NotAllowedError(PellucidError):
    """The server's settings do not allow this."""


class UnauthenticatedError(PellucidError):
    """Nobody that the server knows has called."""


class MissingScopeError(PellucidError):
    """Whoever has called may not do this."""


class UnknownServiceError(PellucidError):
    """No such service; health was asked for it."""


class UnsupportedError(PellucidError):
    """The protocol knows this call, the server does not do it."""


class StoppingError(PellucidError):
    """The server is going away; another one will answer."""


def _bad_request(error: InvalidInputError) -> list[Message]:
    violation = error_details_pb2.BadRequest.FieldViolation(field=clip(error.field, 120), description=_text(error))
    return [error_details_pb2.BadRequest(field_violations=[violation])]


def _resource(error: UnknownModelError | RefusedModelError) -> list[Message]:
    return [error_details_pb2.ResourceInfo(resource_type="model", resource_name=clip(error.name, 120))]


def _retry(error: OverloadedError) -> list[Message]:
    delay = Duration()
    delay.FromMilliseconds(round(1000 * error.retry_seconds))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


def _nothing(error: PellucidError) -> list[Message]:
    return []


_STATUSES: tuple[tuple[type[PellucidError], grpc.StatusCode, str, Callable[..., list[Message]]], ...] = (
    (InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT", _bad_request),
    (UnknownModelError, grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL", _resource),
    (UnknownServiceError, grpc.StatusCode.NOT_FOUND, "UNKNOWN_SERVICE", _nothing),
    (RefusedModelError, grpc.StatusCode.FAILED_PRECONDITION, "REFUSED_MODEL", _resource),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", _retry),
    (TooLargeError, grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE", _nothing),
    (ExpiredError, grpc.StatusCode.DEADLINE_EXCEEDED, "EXPIRED", _nothing),
    (NotAllowedError, grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED", _nothing),
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", _nothing),
    (MissingScopeError, grpc.StatusCode.PERMISSION_DENIED, "MISSING_SCOPE", _nothing),
    (UnsupportedError, grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED", _nothing),
    (StoppingError, grpc.StatusCode.UNAVAILABLE, "STOPPING", _nothing),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failed call answers.

    Attributes:
        code: the gRPC status.
        text: one sentence.
        reason: of its kind, in capitals; the ErrorInfo's.
        details: a serialised google.rpc.Status; goes into the trailing metadata under `DETAILS_KEY`.
    """

    code: grpc.StatusCode
    text: str
    reason: str
    details: bytes


def failure_of(error: Exception) -> Failure:
    """Return what to answer; what is not known to be harmless becomes INTERNAL with a fixed sentence."""
    for kind, code, reason, more in _STATUSES:
        if isinstance(error, kind):
            return _failure(code, _text(error), reason, more(error))
    return _failure(grpc.StatusCode.INTERNAL, INTERNAL_TEXT, "INTERNAL", [])


def _failure(code: grpc.StatusCode, text: str, reason: str, more: list[Message]) -> Failure:
    details, call = [], current_call()
    about = {} if call is None else {REQUEST_ID: call.request_id}  # what a user quotes and the log can be searched for
    for message in (error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=about), *more):
        packed = AnyMessage()
        packed.Pack(message)
        details.append(packed)
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=text, details=details)
    return Failure(code, text, reason, status.SerializeToString())


def _text(error: Exception) -> str:
    return clip(str(error), MAX_TEXT_BYTES)


def clip(text: str, size: int) -> str:
    """Shorten to at most `size` bytes of UTF-8; what a client sent may be long and is echoed in part only."""
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= size else encoded[: size - 3].decode("utf-8", "ignore") + "..."
