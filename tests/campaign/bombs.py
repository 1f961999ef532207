"""Bombs: small messages that would take much memory or time are refused for nearly nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

import grpc

from tests.campaign import requests
from tests.campaign.bomb_files import bombs, oddities
from tests.campaign.models import tiny
from tests.campaign.outcome import Outcome, outcome
from tests.campaign.serving import MIB, Served, served, settle
from tests.campaign.wire import EXPLAIN, OIP, OPTIONS, Reply, ask, offences

MAX_MS = 1.0
MAX_GROWN_BYTES = 16 * MIB
COPIES = 8  # of a picture that was sent, in messages and buffers; they are no more than the sender paid for
REQUEST_BYTES = 64 * MIB


@dataclass(frozen=True)
class Cost:
    """What one message, sent many times, cost the server.

    Attributes:
        replies: the answers.
        ms: processor time for each.
        grown_bytes: by how much its memory rose at most.
    """

    replies: list[Reply]
    ms: float
    grown_bytes: int


def _cost(server: Served, channel: grpc.Channel, picture: bytes, times: int) -> Cost:
    data = requests.explain(encoded_images=[picture]).SerializeToString()
    server.forget_peak()
    held, before = server.peak_bytes(), server.cpu_seconds()
    replies = [ask(channel, EXPLAIN + "Explain", data) for _ in range(times)]
    return Cost(replies, 1000 * (server.cpu_seconds() - before) / times, server.peak_bytes() - held)


def picture_bombs(times: int = 200, *, max_ms: float = MAX_MS) -> Outcome:
    """Send pictures that promise too much, each many times, and watch what they cost the server.

    What a refusal costs is what it takes beyond an equally large message that is refused at its first bytes, so that
    the transport does not count.

    Args:
        times: how often each is sent.
        max_ms: of the server's time for each.
    """
    ms: dict[str, float] = {}
    grown: dict[str, int] = {}
    problems: list[str] = []
    with served({"tiny": tiny()}) as server, grpc.insecure_channel(server.address, OPTIONS) as channel:
        _cost(server, channel, requests.PICTURES[0], 20)
        for name, picture in (bombs() | oddities()).items():
            _cost(server, channel, b"no picture" + bytes(len(picture)), 4)  # its buffers are there from now on
            base = _cost(server, channel, b"no picture" + bytes(len(picture)), times)
            cost = _cost(server, channel, picture, times)
            ms[name], grown[name] = cost.ms - base.ms, cost.grown_bytes - base.grown_bytes
            allowed = {"INVALID_ARGUMENT"} | ({"OK"} if name in oddities() else set())
            if not {one.code.name for one in cost.replies} <= allowed:
                problems.append(f"{name} is {cost.replies[0].code.name}: {cost.replies[0].text[:80]}")
            problems += [f"{name} {one}" for one in offences(cost.replies[0])]
            if grown[name] > MAX_GROWN_BYTES + COPIES * len(picture):
                problems.append(f"{name}: memory rose by {grown[name] / MIB:.0f} MiB")
            if name in bombs() and ms[name] > max_ms:
                problems.append(f"{name} took {ms[name]:.2f} ms of the server")
        problems += server.faults()
    return outcome(
        "picture bombs",
        {"kinds": len(ms), "sent": times * len(ms)},
        {
            "refusal_ms_worst": max(cost for name, cost in ms.items() if name in bombs()),
            "grown_MiB_worst": max(grown.values()) / MIB,
        },
        f"refused in {max_ms:g} ms of server time, memory + 16 MiB at most",
        problems,
    )


def compressed_bomb(times: int = 4) -> Outcome:
    """Send 128 MiB of zeros, compressed by gRPC to a few hundred KB, to a server that takes 64 MiB.

    It unpacks as much as it takes, and no more; what the allocator keeps of the first is used again for the next.
    """
    data = requests.explain(encoded_images=[bytes(2 * REQUEST_BYTES)]).SerializeToString()
    problems: list[str] = []
    compression = grpc.Compression.Gzip
    with (
        served({"tiny": tiny()}) as server,
        grpc.insecure_channel(server.address, OPTIONS, compression) as channel,
        grpc.insecure_channel(server.address, OPTIONS) as plain,
    ):
        idle = settle(server)
        server.forget_peak()
        ask(channel, EXPLAIN + "Explain", data)
        before = settle(server)
        began = time.monotonic()
        for number in range(times):
            reply = ask(channel, (EXPLAIN + "Explain", OIP + "ModelInfer")[number % 2], data)
            if reply.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                problems.append(f"it is {reply.code.name}: {reply.text[:100]}")
        seconds, peak = (time.monotonic() - began) / times, server.peak_bytes() - idle
        grown = settle(server) - before
        after = ask(plain, EXPLAIN + "Explain", requests.explain().SerializeToString())
        problems += server.faults()
    problems += [] if after.ok else [f"afterwards Explain is {after.code.name}"]
    problems += [f"memory rose by {peak / MIB:.0f} MiB"] if peak > 2 * REQUEST_BYTES + MAX_GROWN_BYTES else []
    problems += [f"memory stayed {grown / MIB:.0f} MiB higher"] if grown > MAX_GROWN_BYTES else []
    return outcome(
        "compressed bomb",
        {"sent": times},
        {"refused_after_ms": 1000 * seconds, "peak_MiB": peak / MIB, "grown_MiB": grown / MIB},
        "RESOURCE_EXHAUSTED, memory + 144 MiB at most, and from one to the next + 16 MiB",
        problems,
    )
