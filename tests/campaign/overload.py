"""Overload: ten times as many requests as can be answered, none of which waits for another."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import grpc
import numpy as np
from google.rpc import error_details_pb2

from pellucid.v1 import explain_pb2 as pb
from tests.campaign import requests
from tests.campaign.load import loading
from tests.campaign.models import HEAVY_SIZE, heavy
from tests.campaign.outcome import Outcome, outcome
from tests.campaign.serving import Served, served
from tests.campaign.wire import EXPLAIN, Reply, aio_channel, ask_aio, detail, percentile

MIN_GOODPUT = 0.95
DEADLINE_SECONDS = 1.0
CHANNELS = 8
TICK_SECONDS = 0.01
REQUEST = pb.ExplainRequest(
    model="heavy",
    top_k_classes=1,
    tensor=requests.picture_tensor(
        [1, HEAVY_SIZE, HEAVY_SIZE, 3],
        np.random.default_rng(0).integers(0, 256, (HEAVY_SIZE, HEAVY_SIZE, 3), np.uint8).tobytes(),
    ),
)


@dataclass
class Flood:
    """What came of requests that were sent at a fixed rate.

    Attributes:
        codes: how often each status came.
        in_time: answers within their deadline.
        seconds: how long each of those took.
        refused: how long each refusal took, in seconds.
        unexplained: refusals that do not say when to try again.
    """

    codes: Counter[str] = field(default_factory=Counter)
    in_time: int = 0
    seconds: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    unexplained: int = 0

    def add(self, reply: Reply, took: float) -> None:
        """Count what came back after so many seconds."""
        self.codes[reply.code.name] += 1
        if reply.ok:
            self.seconds.append(took)
            self.in_time += took <= DEADLINE_SECONDS
        elif reply.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self.refused.append(took)
            self.unexplained += detail(reply, error_details_pb2.RetryInfo) is None


def capacity(server: Served, seconds: float, clients: int = 16) -> float:
    """Return how many requests are answered in a second when clients wait for their answers."""
    with loading(server.address, (EXPLAIN + "Explain", REQUEST), clients=clients) as load:
        time.sleep(1)
        before = load.total
        time.sleep(seconds)
        return (load.total - before) / seconds


async def _flood(address: str, rate: float, seconds: float) -> Flood:
    """Send requests at a rate, whatever becomes of those before."""
    flood, data, tasks = Flood(), REQUEST.SerializeToString(), set()
    channels = [aio_channel(address) for _ in range(CHANNELS)]

    async def one(number: int) -> None:
        began = time.monotonic()
        reply = await ask_aio(channels[number % CHANNELS], EXPLAIN + "Explain", data, DEADLINE_SECONDS)
        flood.add(reply, time.monotonic() - began)

    began, sent = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        for number in range(sent, int(elapsed * rate)):
            task = asyncio.ensure_future(one(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        sent = max(sent, int(elapsed * rate))
        await asyncio.sleep(TICK_SECONDS)
    await asyncio.wait_for(asyncio.gather(*tasks), DEADLINE_SECONDS + 5)  # whoever hangs fails the scenario
    for channel in channels:
        await channel.close()
    return flood


def overload(
    seconds: float = 20.0, factor: float = 10.0, layers: int = 30, min_goodput: float = MIN_GOODPUT
) -> Outcome:
    """Measure the capacity of a server, then send ten times as much with a deadline of a second.

    Server and clients share this machine, so the server runs one thread of the model: what refusing costs is not
    taken from the model's share as long as there is a second core.

    Args:
        seconds: how long.
        factor: how many times the capacity.
        layers: of the network; 15 take as many multiply-adds as ResNet-18 at 128 pixels.
        min_goodput: share of the capacity that must be answered in time.
    """
    with served({"heavy": heavy(layers)}, "--workers=1") as server:
        before = capacity(server, min(seconds, 5.0))
        flood = asyncio.run(_flood(server.address, factor * before, seconds))
        after = capacity(server, min(seconds, 5.0))
        problems = server.faults()
    measured = (before + after) / 2  # the machine is never quite the same
    goodput = flood.in_time / seconds / measured
    if goodput < min_goodput:
        problems.append(f"goodput is {goodput:.3f} of the capacity")
    problems += [f"{flood.unexplained} refusals lack RetryInfo"] if flood.unexplained else []
    odd = set(flood.codes) - {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    problems += [f"{flood.codes[code]} are {code}" for code in sorted(odd)]
    return outcome(
        "overload",
        {"sent": flood.codes.total(), **dict(sorted(flood.codes.items()))},
        {
            "capacity_per_s": measured,
            "sent_per_s": flood.codes.total() / seconds,
            "goodput_of_capacity": goodput,
            "answer_ms_p99": 1000 * percentile(flood.seconds, 0.99),
            "refusal_ms_p99": 1000 * percentile(flood.refused, 0.99),
        },
        f"goodput {min_goodput} of the capacity, the rest RESOURCE_EXHAUSTED with RetryInfo or DEADLINE_EXCEEDED",
        problems,
    )
