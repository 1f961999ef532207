"""Streams: several requests under way at a time, answers in the order of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from typing import Any

from server.turns import Turns


async def answer_in_order(
    requests: AsyncIterable[bytes],
    answer: Callable[[bytes], Coroutine[Any, Any, bytes]],
    at_a_time: int,
    turns: Turns,
) -> AsyncGenerator[bytes]:
    """Yield the answer to each request.

    A request is read once there is room for its answer, so a client that does not read is not read from either.

    Args:
        requests: what arrives.
        answer: answers one of them.
        at_a_time: how many may be under way, those included whose answer has not been taken yet.
        turns: how many of all streams together may be under way.
    """
    room = asyncio.Semaphore(at_a_time)
    under_way: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            await room.acquire()
            async for request in requests:
                await turns.take()
                task = asyncio.create_task(answer(request))
                task.add_done_callback(lambda _: turns.give_back())
                under_way.put_nowait(task)
                await room.acquire()
        finally:
            under_way.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await under_way.get()) is not None:
            yield await task
            room.release()
        await reader  # raises what ended the requests early
    finally:
        left = [reader, *(task for task in _drain(under_way) if task is not None)]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _drain(queue: asyncio.Queue[Any]) -> list[Any]:
    return [queue.get_nowait() for _ in range(queue.qsize())]
