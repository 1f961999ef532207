"""What a client says when a call fails: the server's own words and details, or what became of the connection."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from analyzers.errors import InvalidInputError, PellucidError
from server.errors import DETAILS_KEY, REQUEST_ID, clip

MAX_FOREIGN_BYTES = 300  # of a sentence that is gRPC's and not ours


class ServerError(PellucidError):
    """The server answered with an error, or could not be reached.

    Attributes:
        code: the gRPC status.
        reason: one word for programs, such as "INVALID_INPUT", "UNKNOWN_MODEL" or "OVERLOADED"; empty where the error
            is not the server's own.
        field: the field of the request that is wrong, such as "encoded_images[2]"; empty if none is.
        resource: the model that is unknown or refused; empty if none is.
        retry_seconds: when another try is worth while, by the server; None where it does not say.
        request_id: what the server calls the request in its log; empty where it does not say.
        tries: how often the call was sent.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        sentence: str,
        *,
        reason: str = "",
        field: str = "",
        resource: str = "",
        retry_seconds: float | None = None,
        request_id: str = "",
        tries: int = 1,
    ) -> None:
        told = f" (request {request_id})" if request_id and code is grpc.StatusCode.INTERNAL else ""
        super().__init__(f"{code.name}: {sentence}{told}" + (f" (tried {tries} times)" if tries > 1 else ""))
        self.code = code
        self.reason = reason
        self.field = field
        self.resource = resource
        self.retry_seconds = retry_seconds
        self.request_id = request_id
        self.tries = tries


FAILURES = (ServerError, InvalidInputError, OSError)  # what a call with pictures raises


def server_error(error: grpc.RpcError, target: str, timeout_seconds: float, tries: int = 1) -> ServerError:
    """Return what gRPC raised as an error of ours.

    Args:
        error: what gRPC raised.
        target: who was asked.
        timeout_seconds: how long the call could take.
        tries: how often it was sent.
    """
    code = error.code()
    found = _Details()
    for detail in _packed_details(error):
        found.read(detail)
    sentence = _sentence(code, error.details() or "", target, timeout_seconds, ours=bool(found.reason))
    return ServerError(
        code,
        sentence,
        reason=found.reason,
        field=found.field,
        resource=found.resource,
        retry_seconds=found.retry_seconds,
        request_id=found.request_id,
        tries=tries,
    )


class _Details:
    """The google.rpc details of an error, the first of each kind."""

    def __init__(self) -> None:
        self.reason = ""
        self.field = ""
        self.resource = ""
        self.retry_seconds: float | None = None
        self.request_id = ""

    def read(self, packed: AnyMessage) -> None:
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        resource, retry = error_details_pb2.ResourceInfo(), error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            self.reason = self.reason or info.reason
            self.request_id = self.request_id or info.metadata.get(REQUEST_ID, "")
        elif packed.Unpack(request) and request.field_violations:
            self.field = self.field or request.field_violations[0].field
        elif packed.Unpack(resource):
            self.resource = self.resource or resource.resource_name
        elif packed.Unpack(retry) and self.retry_seconds is None:
            self.retry_seconds = max(0.0, retry.retry_delay.ToTimedelta().total_seconds())


def _packed_details(error: grpc.RpcError) -> Iterable[AnyMessage]:
    pairs: Iterable[Any] = error.trailing_metadata() or ()
    for key, value in pairs:
        if key == DETAILS_KEY:
            try:
                return tuple(status_pb2.Status.FromString(value).details)
            except DecodeError:  # some proxy's; the status and the sentence are still good
                return ()
    return ()


def _sentence(code: grpc.StatusCode, text: str, target: str, timeout_seconds: float, *, ours: bool) -> str:
    """Return one line; the server's own sentences stay as they are, gRPC's get what is missing to act on them."""
    if ours:
        return text
    text = clip(" ".join(text.split()), MAX_FOREIGN_BYTES) or "no details"
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"no answer from {target} ({text}); {_advice(text)}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer from {target} within {timeout_seconds:.3g} s; a longer timeout or fewer pictures may help"
    return text


def _advice(text: str) -> str:
    """Return what may be wrong where nobody answers, by what gRPC says of it."""
    if re.search(r"handshake failed|verification check failed", text, re.IGNORECASE):
        return "expected a server with TLS, its certificate of the authority (ca) and with the name that was asked for"
    if "Socket closed" in text:
        return "is it a pellucid server that goes away, or one that wants TLS, or a certificate of the client's?"
    return "is a server running there? `pellucid-serve --repository models` starts one on 127.0.0.1:50051"
