"""Hostile models: they appear in the repository one by one while a good model serves; none is taken."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2 as oip

from tests.campaign import requests
from tests.campaign.load import loading
from tests.campaign.models import tiny
from tests.campaign.outcome import Outcome, outcome
from tests.campaign.serving import MIB, served, settle
from tests.campaign.wire import EXPLAIN, OIP, OPTIONS, ask, offences, percentile
from tests.hostile import CONTENTS, PLACES, SLOW

MAX_RATIO = 1.2
MAX_GROWN_BYTES = 20 * MIB
ASKED = ((EXPLAIN + "Explain", requests.explain()), (OIP + "ModelInfer", requests.floats()))
EVERY = (*CONTENTS, *PLACES, *SLOW)
LOAD = oip.RepositoryModelLoadRequest(model_name="hostile").SerializeToString()
INFER = requests.floats(model="hostile").SerializeToString()


def _appear(folder: Path, name: str) -> None:
    """Put a hostile file into the repository as the model `hostile`, in the place of the last."""
    shutil.rmtree(folder / "hostile", ignore_errors=True)
    file = folder / "hostile" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    if name in PLACES:
        PLACES[name](file, tiny())
    else:
        file.write_bytes((CONTENTS | SLOW)[name](tiny()))


def _taken(channel: grpc.Channel, name: str) -> list[str]:
    """Ask for the hostile model to be loaded, and for an answer of it; return what is wrong with how it is refused."""
    reply = ask(channel, OIP + "RepositoryModelLoad", LOAD, 200)
    found = [] if reply.code.name in ("FAILED_PRECONDITION", "NOT_FOUND") else [f"{name}: load is {reply.code.name}"]
    found += [f"{name}: the refusal {one}: {reply.text[:100]}" for one in offences(reply)]
    after = ask(channel, OIP + "ModelInfer", INFER)
    if reply.ok or after.ok:
        ask(channel, OIP + "RepositoryModelUnload", LOAD)  # so that it does not answer in the place of the next
    return found + ([f"{name} answers"] if after.ok else [])


def hostile_models(names: tuple[str, ...] = EVERY, *, judged: bool = True, vet_seconds: float = 20) -> Outcome:
    """Load hostile models under load.

    Args:
        names: which of the corpus.
        judged: whether the ratio counts; short runs on a shared machine say little about it.
        vet_seconds: how long a file's trial may take.
    """
    problems: list[str] = []
    refusals: list[float] = []
    options = ("--model-control", f"--vet-seconds={vet_seconds}")
    with served({"tiny": tiny()}, *options) as server, grpc.insecure_channel(server.address, OPTIONS) as channel:
        with loading(server.address, *ASKED, clients=2, pause_seconds=0.003) as alone:
            time.sleep(max(2.0, len(names) / 10))
        before = settle(server)
        with loading(server.address, *ASKED, clients=2, pause_seconds=0.003) as beside:
            for name in names:
                _appear(server.folder, name)
                began = time.monotonic()
                problems += _taken(channel, name)
                refusals.append(time.monotonic() - began)
        grown = settle(server) - before
        problems += [*alone.problems, *beside.problems, *server.faults()]
    ratio = beside.p99_ms() / alone.p99_ms()
    problems += [f"p99 of the others x {ratio:.2f}"] if judged and ratio > MAX_RATIO else []
    problems += [f"memory grew by {grown / MIB:.1f} MiB"] if grown > MAX_GROWN_BYTES else []
    return outcome(
        "hostile models",
        {"models": len(names), "calls_beside": beside.total, "failed": beside.total - beside.codes["OK"]},
        {
            "p99_ms_alone": alone.p99_ms(),
            "p99_x_beside": ratio,
            "refusal_s_median": percentile(refusals, 0.5),
            "refusal_s_worst": max(refusals),
            "grown_MiB": grown / MIB,
        },
        "every one refused, nobody else fails, the others' p99 x 1.2 at most",
        problems,
    )
