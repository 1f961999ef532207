"""Errors of the server, and the one place that knows gRPC status codes."""

from __future__ import annotations

import grpc

from analyzers.errors import InvalidInputError, PellucidError

INTERNAL_TEXT = "internal error; the server's log says more"


class UnknownModelError(PellucidError):
    """No such model or version."""


class RefusedModelError(PellucidError):
    """The model is there but its file was refused."""


_CODES: tuple[tuple[type[PellucidError], grpc.StatusCode], ...] = (
    (InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (RefusedModelError, grpc.StatusCode.FAILED_PRECONDITION),
)

MAX_TEXT = 1000


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return the status and the sentence to answer; what is not known to be harmless becomes INTERNAL."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code, str(error)[:MAX_TEXT]
    return grpc.StatusCode.INTERNAL, INTERNAL_TEXT
