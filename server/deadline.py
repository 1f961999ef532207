"""How long a call may take: set once at the edge, known to whoever waits or runs for it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from server.errors import ExpiredError

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


def deadline() -> float:
    """Return when the call that is being answered must be over, in seconds of `time.monotonic`; inf for never."""
    return _deadline.get()


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Give the body so many seconds, or fewer where the call has a nearer deadline.

    Raises:
        ExpiredError: it took longer; what it waited for has been cancelled.
    """
    until = time.monotonic() + seconds
    if until >= _deadline.get():
        yield
        return
    token = _deadline.set(until)
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ExpiredError(f"the answer was not ready within {seconds:.3g} s") from None
    finally:
        _deadline.reset(token)
