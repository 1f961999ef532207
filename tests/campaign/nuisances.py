"""What bad clients do to good ones: the 99th percentile of the others, with and without them."""

from __future__ import annotations

import time
from contextlib import nullcontext

from tests.campaign import requests
from tests.campaign.junk import NUISANCES
from tests.campaign.load import loading
from tests.campaign.models import tiny
from tests.campaign.outcome import Outcome, outcome
from tests.campaign.serving import MIB, Served, served, settle
from tests.campaign.wire import EXPLAIN, OIP, percentile

MAX_RATIO = 1.2
MAX_GROWN_BYTES = 100 * MIB
ASKED = ((EXPLAIN + "Explain", requests.explain()), (OIP + "ModelInfer", requests.floats()))


def _p99_ms(server: Served, nuisance: str, seconds: float, problems: list[str]) -> list[float]:
    """Return what good clients' calls take, in ms, beside a nuisance or, without a name, alone."""
    with NUISANCES[nuisance](server.address) if nuisance else nullcontext():
        time.sleep(0.2)
        with loading(server.address, *ASKED, clients=2, pause_seconds=0.003) as load:
            time.sleep(seconds)
    problems += [f"beside {nuisance or 'nobody'}: {one}" for one in load.problems[:3]]
    return [1000 * one for _, one in load.calls]


def nuisances(seconds: float = 8.0, rounds: int = 3, *, judged: bool = True) -> Outcome:
    """Measure good clients alone and beside each nuisance, in turns, so that the machine's moods fall on both.

    Args:
        seconds: of each measurement.
        rounds: of turns.
        judged: whether the ratio counts; short runs on a shared machine say little about it.
    """
    alone: dict[str, list[float]] = {name: [] for name in NUISANCES}
    beside: dict[str, list[float]] = {name: [] for name in NUISANCES}
    problems: list[str] = []
    with served({"tiny": tiny()}) as server:
        _p99_ms(server, "", min(1.0, seconds), problems)
        before = settle(server)
        server.forget_peak()
        for _ in range(rounds):
            for name in NUISANCES:
                alone[name] += _p99_ms(server, "", seconds, problems)
                beside[name] += _p99_ms(server, name, seconds, problems)
        peak, grown = server.peak_bytes() - before, settle(server) - before
        problems += server.faults()
    ratios = {name: percentile(beside[name], 0.99) / percentile(alone[name], 0.99) for name in NUISANCES}
    if judged:
        problems += [f"p99 beside {name} x {ratio:.2f}" for name, ratio in ratios.items() if ratio > MAX_RATIO]
    problems += [f"memory rose by {peak / MIB:.0f} MiB"] if peak > MAX_GROWN_BYTES else []
    return outcome(
        "nuisances",
        {"calls": sum(map(len, alone.values())) + sum(map(len, beside.values()))},
        {
            "p99_ms_alone": percentile([one for part in alone.values() for one in part], 0.99),
            **{f"p99_x_{name.replace(' ', '_')}": ratio for name, ratio in ratios.items()},
            "peak_MiB": peak / MIB,
            "grown_MiB": grown / MIB,
        },
        "everyone else is answered, their p99 x 1.2 at most, memory + 100 MiB at most",
        problems,
    )
