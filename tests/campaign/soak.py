"""Soak: everything at once, for as long as you like; memory must not grow and no call may be lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

import grpc
from tritonclient.grpc import service_pb2 as oip

from pellucid.v1 import explain_pb2 as pb
from tests.campaign import requests
from tests.campaign.fuzz import PROPER, STREAM, message
from tests.campaign.load import Load, loading
from tests.campaign.models import numbered, tiny
from tests.campaign.outcome import Outcome, outcome
from tests.campaign.serving import MIB, Served, put, served, settle
from tests.campaign.wire import EXPLAIN, OIP, OPTIONS, aio_channel, ask, ask_aio

MAX_GROWN_BYTES = 20 * MIB
RELOAD_SECONDS = 2.0
VALID = (
    (EXPLAIN + "Explain", requests.explain(encoded_images=requests.PICTURES)),
    (EXPLAIN + "Explain", requests.explain(evidence=1)),
    (EXPLAIN + "WhatIf", pb.WhatIfRequest(model="tiny", encoded_image=requests.PICTURES[1], smallest_flip=True)),
    (OIP + "ModelInfer", requests.floats(3)),
    (OIP + "ModelInfer", requests.pictures(requests.encoded("JPEG"), requests.encoded("WEBP"))),
    (OIP + "ModelMetadata", oip.ModelMetadataRequest(name="tiny")),
    (EXPLAIN + "Explain", requests.explain(model="changing")),
)


@dataclass
class Nuisance:
    """What clients that do not just ask saw."""

    codes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


async def _streams(address: str, stop: threading.Event, seen: Nuisance) -> None:
    """Send 20 requests on a stream, read every answer, and again."""
    data = [requests.floats(id=str(number)).SerializeToString() for number in range(20)]
    async with aio_channel(address) as channel:
        while not stop.is_set():
            try:
                answers = [one async for one in channel.stream_stream(STREAM)(iter(data), timeout=60)]
            except grpc.aio.AioRpcError as error:
                seen.problems.append(f"a stream is {error.code().name}: {error.details()}")
                continue
            ids = [oip.ModelStreamInferResponse.FromString(one).infer_response.id for one in answers]
            seen.codes["streams"] += 1
            if ids != [str(number) for number in range(20)]:
                seen.problems.append(f"a stream answered {ids}")


async def _cancels(address: str, stop: threading.Event, seen: Nuisance) -> None:
    """Leave calls at random moments."""
    random, data = Random(1), VALID[0][1].SerializeToString()  # noqa: S311 - moments, not secrets
    async with aio_channel(address) as channel:
        while not stop.is_set():
            call = channel.unary_unary(VALID[0][0])(data, timeout=60)
            await asyncio.sleep(random.random() * 0.02)
            call.cancel()
            seen.codes["cancels"] += 1


async def _damage(address: str, stop: threading.Event, seen: Nuisance) -> None:
    """Send damaged messages."""
    number = 0
    async with aio_channel(address) as channel:
        while not stop.is_set():
            number += 1
            method, data = message(number, 99)
            if method == STREAM or "Repository" in method:
                continue
            reply = await ask_aio(channel, method, data, 60)
            seen.codes["damaged"] += 1
            if reply.code.name not in PROPER:
                seen.problems.append(f"damaged message {number} of seed 99 to {method} is {reply.code.name}")
            await asyncio.sleep(0.002)


def _reloads(server: Served, stop: threading.Event, seen: Nuisance) -> None:
    """Replace the file of the model `changing` and load it."""
    request = oip.RepositoryModelLoadRequest(model_name="changing").SerializeToString()
    with grpc.insecure_channel(server.address, OPTIONS) as channel:
        number = 0
        while not stop.wait(RELOAD_SECONDS):
            number += 1
            put(server.folder, {"changing": numbered(tiny(number % 2), number)})
            reply = ask(channel, OIP + "RepositoryModelLoad", request, 60)
            seen.codes["reloads"] += 1
            if not reply.ok:
                seen.problems.append(f"a reload is {reply.code.name}: {reply.text[:100]}")


def _mixed(server: Served, seconds: float, seen: Nuisance) -> Load:
    """Keep all of it going for so long."""
    stop = threading.Event()

    async def together() -> None:
        await asyncio.gather(*(one(server.address, stop, seen) for one in (_streams, _cancels, _damage)))

    threads = [
        threading.Thread(target=lambda: asyncio.run(together())),
        threading.Thread(target=_reloads, args=(server, stop, seen)),
    ]
    with ExitStack() as stack:
        load = stack.enter_context(loading(server.address, *VALID, clients=4))
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        stop.set()
        for thread in threads:
            thread.join(90)
    return load


def soak(minutes: float = 20.0) -> Outcome:
    """Mix explanations, inference, streams, errors, cancels and reloads for so many minutes."""
    models = {"tiny": tiny(), "changing": tiny(1), "spare": tiny()}
    with served(models, "--model-control") as server:
        warm_up = Nuisance()
        problems = list(_mixed(server, min(60.0, 3 + 10 * minutes), warm_up).problems)
        before, seen = settle(server), Nuisance()
        load = _mixed(server, 60 * minutes, seen)
        grown = settle(server) - before
        problems += [*load.problems, *warm_up.problems, *seen.problems, *server.faults()]
    if grown > MAX_GROWN_BYTES:
        problems.append(f"memory grew by {grown / MIB:.1f} MiB")
    return outcome(
        "soak",
        {"calls": load.total, "lost": load.total - load.codes["OK"], **dict(sorted(seen.codes.items()))},
        {"minutes": minutes, "p99_ms": load.p99_ms(), "grown_MiB": grown / MIB, "held_MiB": before / MIB},
        "no call lost, RSS + 20 MiB at most",
        problems,
    )
