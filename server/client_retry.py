"""Which failed calls are sent again, when, and until when; the clients differ only in how they wait.

gRPC's own retry policy is not used: it drops requests of more than 256 KiB (a photograph) from retrying without a word,
makes five tries at most, does not know CANCELLED from a server that goes away, and does not read RetryInfo.
"""

from __future__ import annotations

import random
from time import monotonic

import grpc

from server.channels import Connection
from server.client_calls import Health
from server.client_errors import ServerError, server_error

FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 2.0
READY_POLL_SECONDS = 0.1
CLOSED = "the client is closed; a closed channel asks nobody"
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # CANCELLED by a server that goes away


class Tries:
    """One call with all its tries, under one deadline; every call may be repeated, since none changes anything.

    Args:
        connection: who is asked, and how patiently.
        timeout_seconds: for all tries and the waits between them; the connection's if None.
        retries: how often the call may be sent again; the connection's if None.
    """

    def __init__(self, connection: Connection, timeout_seconds: float | None, retries: int | None) -> None:
        self._target = connection.name
        self._retries = connection.retries if retries is None else retries
        self._timeout_seconds = connection.timeout_seconds if timeout_seconds is None else timeout_seconds
        self._deadline = monotonic() + self._timeout_seconds
        self._sent = 0

    def start(self) -> float:
        """Count a try and return how many seconds it has."""
        self._sent += 1
        return max(0.0, self._deadline - monotonic())

    def wait_seconds(self, failure: grpc.RpcError) -> float:
        """Return how long to wait before the next try.

        Raises:
            ServerError: there is to be none: another try cannot help, none is left, or no time is.
        """
        error = server_error(failure, self._target, self._timeout_seconds, self._sent)
        if self._sent > self._retries or not _passing(error):
            raise error
        wait = _backoff(self._sent)
        if error.retry_seconds is not None:
            wait = error.retry_seconds * random.uniform(1.0, 1.2)  # noqa: S311 (so that not all come back at once)
        if monotonic() + wait >= self._deadline:
            raise error
        return wait


def _passing(error: ServerError) -> bool:
    """Return whether the same request may be answered later; RESOURCE_EXHAUSTED is also what is too large for ever."""
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return error.retry_seconds is not None
    return error.code in LOST


def _backoff(sent: int) -> float:
    longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** (sent - 1))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 (so that not all come back at once)


def not_ready(target: str, timeout_seconds: float, heard: Health | ServerError) -> ServerError:
    """Return the error of having waited in vain, with what was heard last."""
    said = f"it says {heard.name}" if isinstance(heard, Health) else str(heard)
    sentence = f"no server at {target} is ready after {timeout_seconds:.3g} s; {said}"
    return ServerError(grpc.StatusCode.DEADLINE_EXCEEDED, sentence)
