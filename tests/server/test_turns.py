"""Turns of streams: much room alone, little beside others, none lost by those who leave."""

from __future__ import annotations

import asyncio

from server.turns import Turns


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def taken(turns: Turns, many: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(turns.take()) for _ in range(many)]
    await settle()
    return tasks


def count(tasks: list[asyncio.Task[None]]) -> int:
    return sum(task.done() and not task.cancelled() for task in tasks)


def test_streams_have_much_room_alone_and_little_beside_others() -> None:
    others = False

    async def run() -> list[int]:
        nonlocal others
        turns = Turns(4, 2, lambda: others)
        tasks = await taken(turns, 10)
        seen = [count(tasks)]
        others = True
        for _ in range(2):  # those that are under way end; beside others they leave their room free
            turns.give_back()
        await settle()
        seen.append(count(tasks))
        turns.give_back()
        await settle()
        seen.append(count(tasks))
        others = False
        turns.give_back()
        await settle()
        seen.append(count(tasks))
        for task in tasks:
            task.cancel()
        return seen

    assert asyncio.run(run()) == [4, 4, 5, 8]


def test_turns_come_in_the_order_of_asking_and_those_who_leave_lose_none() -> None:
    async def run() -> tuple[list[int], int]:
        turns, order = Turns(1, 1), []

        async def stream(number: int) -> None:
            await turns.take()
            order.append(number)
            await asyncio.sleep(0)
            turns.give_back()

        tasks = [asyncio.create_task(stream(number)) for number in range(6)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        left = asyncio.create_task(turns.take())
        await settle()
        last = asyncio.create_task(turns.take())
        await settle()
        turns.give_back()  # the turn is given to `last`, which leaves before it can go on
        last.cancel()
        await settle()
        assert left.done()
        return order, count(await taken(turns, 1))

    assert asyncio.run(run()) == ([0, 1, 3, 4, 5], 1)
