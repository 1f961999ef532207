"""Load: clients that ask again as soon as they are answered, in a thread of their own while a scenario goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from google.protobuf.message import Message

from tests.campaign.wire import Reply, aio_channel, ask_aio, percentile

Check = Callable[[Reply], str]


def answered(reply: Reply) -> str:
    """Accept every answer, no error."""
    return "" if reply.ok else f"{reply.code.name}: {reply.text[:120]}"


@dataclass
class Load:
    """What clients saw; other threads may look at it meanwhile.

    Attributes:
        codes: how often each status came.
        calls: when each call began, and how many seconds it took.
        problems: what the check said, one for each answer that it refused.
    """

    codes: Counter[str] = field(default_factory=Counter)
    calls: list[tuple[float, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, began: float, reply: Reply, check: Check) -> None:
        """Count one answer."""
        self.calls.append((began, time.monotonic() - began))
        self.codes[reply.code.name] += 1
        if wrong := check(reply):
            self.problems.append(wrong)

    @property
    def total(self) -> int:
        """How many calls were answered or refused."""
        return len(self.calls)

    def between(self, start: float, end: float) -> list[float]:
        """Return seconds of the calls that began then."""
        return [seconds for began, seconds in self.calls if start <= began < end]

    def p99_ms(self) -> float:
        """Return what 99 of 100 calls take at most."""
        return 1000 * percentile([seconds for _, seconds in self.calls], 0.99)


async def keep_asking(
    load: Load,
    address: str,
    asked: list[tuple[str, bytes]],
    until: Callable[[], bool],
    *,
    clients: int,
    check: Check = answered,
    pause_seconds: float = 0.0,
) -> None:
    """Let clients, each on a connection of its own, take turns with the requests until told to stop."""

    async def client(number: int) -> None:
        async with aio_channel(address) as channel:
            while not until():
                method, data = asked[number % len(asked)]
                number += 1
                began = time.monotonic()
                load.add(began, await ask_aio(channel, method, data, 60), check)
                if pause_seconds:
                    await asyncio.sleep(pause_seconds)

    await asyncio.gather(*(client(number) for number in range(clients)))


@contextmanager
def loading(
    address: str,
    *asked: tuple[str, Message],
    clients: int = 4,
    check: Check = answered,
    pause_seconds: float = 0.0,
) -> Iterator[Load]:
    """Keep a server busy while the body runs; at the end every call that was begun has come back."""
    load, stop = Load(), threading.Event()
    data = [(method, message.SerializeToString()) for method, message in asked]
    work = keep_asking(load, address, data, stop.is_set, clients=clients, check=check, pause_seconds=pause_seconds)
    thread = threading.Thread(target=asyncio.run, args=(work,), name="load")
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join(90)
