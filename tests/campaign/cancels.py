"""Cancels: clients that go away at any moment, thousands of them, while others are answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import grpc

from tests.campaign import requests
from tests.campaign.fuzz import STREAM
from tests.campaign.models import slowed, tiny
from tests.campaign.outcome import Outcome, outcome
from tests.campaign.serving import MIB, served, settle
from tests.campaign.wire import EXPLAIN, OIP, aio_channel, ask_aio

MAX_GROWN_BYTES = 20 * MIB
MOMENTS = (
    0.0,
    0.001,
    0.005,
    0.02,
    0.2,
)  # seconds until a client goes: before it is sent, while it waits, while it runs


async def _one(channel: grpc.aio.Channel, random: Random, ended: Counter[str]) -> None:
    """Make one call and leave it at a random moment."""
    moment = random.choice(MOMENTS) * random.random()
    method, data = random.choice(ASKED)
    if method == STREAM:
        await _leave_stream(channel, data, moment, ended)
        return
    call = channel.unary_unary(method)(data, timeout=30)
    if moment:
        await asyncio.sleep(moment)
    call.cancel()
    try:
        await call
        ended["answered"] += 1
    except asyncio.CancelledError:
        ended["cancelled"] += 1
    except grpc.aio.AioRpcError as error:
        ended[error.code().name] += 1


async def _leave_stream(channel: grpc.aio.Channel, data: bytes, moment: float, ended: Counter[str]) -> None:
    """Send a few messages on a stream, read one answer at most, and leave."""
    call = channel.stream_stream(STREAM)(timeout=30)
    try:
        for _ in range(3):
            await call.write(data)
        if moment > MOMENTS[1]:
            await asyncio.wait_for(call.read(), moment)
    except (TimeoutError, asyncio.CancelledError):
        pass
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        ended[f"{(await call.code()).name} {await call.details()}".strip()] += 1
        return
    call.cancel()
    ended["cancelled"] += 1


ASKED = (
    (EXPLAIN + "Explain", requests.explain().SerializeToString()),
    (EXPLAIN + "Explain", requests.explain(model="slow", encoded_images=requests.PICTURES).SerializeToString()),
    (OIP + "ModelInfer", requests.floats(3).SerializeToString()),
    (OIP + "ModelInfer", requests.floats(model="slow").SerializeToString()),
    (STREAM, requests.floats(model="slow").SerializeToString()),
    (STREAM, requests.floats().SerializeToString()),
)


async def _cancel_all(address: str, count: int, seed: int, clients: int) -> Counter[str]:
    ended: Counter[str] = Counter()
    numbers = iter(range(count))

    async def client() -> None:
        async with aio_channel(address) as channel:
            for number in numbers:
                await _one(channel, Random(seed * 1_000_003 + number), ended)  # noqa: S311 - moments, not secrets

    await asyncio.gather(*(client() for _ in range(clients)))
    return ended


async def _still_answers(address: str) -> list[str]:
    asked = {method: data for method, data in ASKED[:3] if method != STREAM}
    async with aio_channel(address) as channel:
        replies = [(method, await ask_aio(channel, method, data)) for method, data in asked.items()]
    return [f"afterwards {method} is {reply.code.name}: {reply.text}" for method, reply in replies if not reply.ok]


def cancels(count: int = 20_000, seed: int = 7, clients: int = 32) -> Outcome:
    """Cancel calls of both protocols, unary and streams, before they are sent, while they wait and while they run."""
    with served({"tiny": tiny(), "slow": slowed(8)}, "--max-requests=4096") as server:
        asyncio.run(_cancel_all(server.address, max(200, count // 4), seed + 1, clients))  # warms the allocator
        before = settle(server)
        ended = asyncio.run(_cancel_all(server.address, count, seed, clients))
        grown = settle(server) - before
        problems = server.faults() or asyncio.run(_still_answers(server.address))
    odd = {code: number for code, number in ended.items() if code not in ("cancelled", "answered", "CANCELLED")}
    problems += [f"{number} ended {code}" for code, number in odd.items() if code != "RESOURCE_EXHAUSTED"]
    if grown > MAX_GROWN_BYTES:
        problems.append(f"memory grew by {grown / MIB:.1f} MiB")
    return outcome(
        "cancels",
        {"calls": count, **dict(sorted(ended.items()))},
        {"grown_MiB": grown / MIB},
        "no crash, RSS + 20 MiB at most, answers afterwards",
        problems,
    )
