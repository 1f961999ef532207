"""Hot reloads: a model's file replaced again and again under load, every tenth time by a broken one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

import grpc
from tritonclient.grpc import service_pb2 as oip

from pellucid.v1 import explain_pb2 as pb
from tests.campaign import requests
from tests.campaign.load import Load, loading
from tests.campaign.models import numbered, tiny
from tests.campaign.outcome import Outcome, outcome
from tests.campaign.serving import MIB, Served, put, served, settle
from tests.campaign.wire import EXPLAIN, OIP, OPTIONS, Reply, ask, percentile

MAX_GROWN_BYTES = 20 * MIB
SEEN_SECONDS = 30.0
WARM_UP = 3  # reloads before memory is compared
ASKED = (
    (EXPLAIN + "Explain", requests.explain()),
    (OIP + "ModelInfer", requests.floats(outputs=("logits",))),
)
# Behind the tag and length of Proof.model_sha256; the picture's own digest stays.
DIGEST = re.compile(rb"\x22\x40[0-9a-f]{64}")
How = Literal["polling", "load"]


def version(number: int) -> bytes:
    """Return the file of a reload: one of two models in turn, never the same bytes twice."""
    return numbered(tiny(number % 2), number)


def broken(number: int) -> bytes:
    """Return a file that no server may serve, of several kinds in turn."""
    good = version(number)
    return (good[: len(good) // 2], good.replace(b"Conv", b"Co\xffv"), b"", b"not a model" * 99)[number % 4]


def answers(model: bytes) -> set[bytes]:
    """Return what a server of that model alone answers to ASKED, to the bit but for the file's digest."""
    with served({"tiny": model}) as server, grpc.insecure_channel(server.address, OPTIONS) as channel:
        return {without_digest(ask(channel, method, message.SerializeToString()).data) for method, message in ASKED}


def without_digest(data: bytes) -> bytes:
    """Return an answer without the digest of the model's file, 64 hexadecimal digits, where it has one."""
    return DIGEST.sub(b"", data)


@dataclass
class Reloads:
    """What reloading did.

    Attributes:
        windows: when each file was written, and when the server was seen to have taken or refused it.
        problems: what went wrong.
    """

    windows: list[tuple[float, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def reload(self, channel: grpc.Channel, server: Served, number: int, how: How) -> None:
        """Put the next file in the place of the last and wait until the server knows."""
        good = number % 10 != 5
        data = version(number) if good else broken(number)
        began = time.monotonic()
        put(server.folder, {"tiny": data})
        code = _loaded(channel) if how == "load" else "OK" if good else "FAILED_PRECONDITION"
        if code != ("OK" if good else "FAILED_PRECONDITION"):
            self.problems.append(f"reload {number} is {code}")
        if not _wait(lambda: _sha256(channel) == sha256(data).hexdigest() if good else bool(_reason(channel))):
            self.problems.append(f"reload {number} by {how} was not seen in {SEEN_SECONDS:g} s")
        self.windows.append((began, time.monotonic()))

    def stalls_ms(self, load: Load) -> list[float]:
        """Return the slowest call of each window."""
        return [1000 * max(load.between(*window), default=0.0) for window in self.windows]


def _loaded(channel: grpc.Channel) -> str:
    request = oip.RepositoryModelLoadRequest(model_name="tiny").SerializeToString()
    return ask(channel, OIP + "RepositoryModelLoad", request, 60).code.name


def _sha256(channel: grpc.Channel) -> str:
    request = pb.GetModelRequest(model="tiny").SerializeToString()
    return pb.GetModelResponse.FromString(ask(channel, EXPLAIN + "GetModel", request).data).sha256


def _reason(channel: grpc.Channel) -> str:
    index = oip.RepositoryIndexResponse.FromString(ask(channel, OIP + "RepositoryIndex", b"").data)
    return next((one.reason for one in index.models if one.name == "tiny"), "")


def _wait(seen: Callable[[], bool]) -> bool:
    for _ in range(int(SEEN_SECONDS / 0.05)):
        if seen():
            return True
        time.sleep(0.05)
    return False


def reloads(count: int = 100, how: How = "load") -> Outcome:
    """Reload a model `count` times under load, noticed by polling or asked for by RepositoryModelLoad."""
    expected = answers(tiny(0)) | answers(tiny(1))
    options = ("--poll-seconds=0.2",) if how == "polling" else ("--model-control",)

    def check(reply: Reply) -> str:
        if not reply.ok:
            return f"lost: {reply.code.name} {reply.text[:100]}"
        return "" if without_digest(reply.data) in expected else "an answer is of neither version"

    done, warm_up = Reloads(), Reloads()
    with served({"tiny": tiny(1)}, *options) as server, grpc.insecure_channel(server.address, OPTIONS) as channel:
        with loading(server.address, *ASKED, clients=2, check=check, pause_seconds=0.002) as quiet:
            for number in range(WARM_UP):
                warm_up.reload(channel, server, -2 - number, how)  # numbers of its own, none of them broken
            time.sleep(1)
        before = settle(server)
        with loading(server.address, *ASKED, clients=2, check=check, pause_seconds=0.002) as load:
            for number in range(count):
                done.reload(channel, server, number, how)
        grown = settle(server) - before
        problems = [*warm_up.problems, *done.problems, *quiet.problems, *load.problems, *server.faults()]
    if grown > MAX_GROWN_BYTES:
        problems.append(f"memory grew by {grown / MIB:.1f} MiB")
    stalls = done.stalls_ms(load)
    return outcome(
        f"reloads by {how}",
        {"reloads": count, "calls": load.total, "lost": load.total - load.codes["OK"]},
        {
            "stall_ms_median": percentile(stalls, 0.5),
            "stall_ms_p99": percentile(stalls, 0.99),
            "p99_ms": load.p99_ms(),
            "reload_s": percentile([end - start for start, end in done.windows], 0.5),
            "grown_MiB": grown / MIB,
        },
        "none lost, every answer of one of the two versions, broken files refused, RSS + 20 MiB at most",
        problems,
    )
