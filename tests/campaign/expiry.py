"""Expired work stops: nobody waits for an answer any more, so the run that makes it ends."""

from __future__ import annotations

import asyncio
import time

from tests.campaign import requests
from tests.campaign.models import slowed, tiny
from tests.campaign.outcome import Outcome, outcome
from tests.campaign.serving import Served, served
from tests.campaign.wire import EXPLAIN, OIP, Reply, aio_channel, ask_aio, percentile

DEADLINE_SECONDS = 0.2
MAX_LATE_MS = 150.0
IDLE_SHARE = 0.2  # of one core; what a server that has stopped may still take
SLOW = {
    "Explain": (EXPLAIN + "Explain", requests.explain(model="slow").SerializeToString()),
    "ModelInfer": (OIP + "ModelInfer", requests.floats(model="slow").SerializeToString()),
}
NEXT = (EXPLAIN + "Explain", requests.explain().SerializeToString())


async def _one(server: Served, method: str, data: bytes, *, leave: bool) -> tuple[Reply | None, float, float]:
    """Ask the slow model with a deadline, or leave it then, and the fast one behind it.

    Returns:
        What the slow call answered, None where it was left; how many ms after the deadline the next caller was
        answered; and what share of a core the server took from 150 ms after the deadline on.
    """
    async with aio_channel(server.address) as channel, aio_channel(server.address) as other:
        began = time.monotonic()
        slow = asyncio.ensure_future(ask_aio(channel, method, data, None if leave else DEADLINE_SECONDS))
        await asyncio.sleep(DEADLINE_SECONDS / 2)
        behind = asyncio.ensure_future(ask_aio(other, *NEXT, 60))
        if leave:
            await asyncio.sleep(DEADLINE_SECONDS / 2)
            slow.cancel()
        reply = (await asyncio.gather(slow, return_exceptions=True))[0]
        answer = await behind
        late = 1000 * (time.monotonic() - began - DEADLINE_SECONDS)
        await asyncio.sleep(max(0.0, DEADLINE_SECONDS + MAX_LATE_MS / 1000 - (time.monotonic() - began)))
        cpu, start = server.cpu_seconds(), time.monotonic()
        await asyncio.sleep(0.5)
        share = (server.cpu_seconds() - cpu) / (time.monotonic() - start)
    return reply if isinstance(reply, Reply) else None, late if answer.ok else float("inf"), share


def expiry(rounds: int = 10, products: int = 300, *, max_late_ms: float = MAX_LATE_MS) -> Outcome:
    """Let callers with a deadline of 200 ms ask a model whose run takes seconds, on a server of one worker.

    Args:
        rounds: of each protocol, half of them leaving without a deadline.
        products: how slow the model is; each takes about 10 ms.
        max_late_ms: after the deadline, until the next caller is answered.
    """
    late: list[float] = []
    shares: list[float] = []
    problems: list[str] = []
    with served({"tiny": tiny(), "slow": slowed(products, 1024)}, "--workers=1", "--max-batch=1") as server:
        for number in range(rounds):
            for name, (method, data) in SLOW.items():
                leave = number % 2 == 1
                reply, after, share = asyncio.run(_one(server, method, data, leave=leave))
                late.append(after)
                shares.append(share)
                if not leave and (reply is None or reply.code.name not in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")):
                    problems.append(f"{name} with a deadline is {reply}")
                if after > max_late_ms or share > (IDLE_SHARE if max_late_ms <= MAX_LATE_MS else 1.0):
                    how = "its caller left" if leave else "its deadline"
                    problems.append(
                        f"{name}: the next answer came {after:.0f} ms after {how}, {share:.0%} of a core on"
                    )
        problems += server.faults()
    return outcome(
        "expiry",
        {"expired": len(late)},
        {
            "next_answer_ms_after_median": percentile(late, 0.5),
            "next_answer_ms_after_worst": max(late),
            "core_share_afterwards_worst": max(shares),
        },
        "the run stops within 150 ms of the deadline or of the caller's leaving",
        problems,
    )
