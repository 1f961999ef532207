"""One measurement: a closed loop against a server, or the bare loop, with the CPU time of everybody involved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.serving.load import Figures, Job
from benchmarks.serving.processes import TICKS, cpu_seconds

CHILD_SECONDS = 120
QUIET_SHARE = 0.15  # of all cores; some servers take a tenth while nobody asks
QUIET_SECONDS = 30.0


class FailedError(Exception):
    """A closed loop broke off; the message says why."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run of a closed loop showed.

    Attributes:
        rate: answers per second.
        p50_ms: of an answer, as the client sees it.
        p99_ms: of an answer.
        cpu_ms: CPU time of the server and its children per answer; of the process itself in a bare loop.
        client_ms: CPU time of the client per answer.
        others: share of all cores' time that other programs took meanwhile, 0..1.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    client_ms: float
    others: float


def wait_until_quiet() -> None:
    """Wait until servers that have just started are through with it: one listens while its other processes load yet."""
    until = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < until:
        busy, began = _busy_seconds(), time.monotonic()
        time.sleep(1.0)
        if _busy_seconds() - busy < QUIET_SHARE * (os.cpu_count() or 1) * (time.monotonic() - began):
            return


def measure_server(process: int, job: Job) -> Measured:
    """Load a server and read its CPU time before and after.

    Raises:
        FailedError: the loop broke off.
    """
    began, busy, cpu = time.perf_counter(), _busy_seconds(), cpu_seconds(process)
    figures = Figures(**_child(["benchmarks.serving.load"], json.dumps(asdict(job))))
    cpu, busy, wall = cpu_seconds(process) - cpu, _busy_seconds() - busy, time.perf_counter() - began
    others = busy - cpu - figures.answers * figures.client_ms / 1e3
    return Measured(
        figures.rate,
        figures.p50_ms,
        figures.p99_ms,
        1e3 * cpu / figures.answers,
        figures.client_ms,
        max(0.0, others) / wall / (os.cpu_count() or 1),
    )


def measure_bare(file: Path, threads: int, warm_seconds: float, seconds: float) -> Measured:
    """Run a model in a process of its own, without any server.

    Raises:
        FailedError: it broke off.
    """
    began, busy, own = time.perf_counter(), _busy_seconds(), os.times()
    figures = _child(["benchmarks.serving.bare", str(file), str(threads), str(warm_seconds), str(seconds)])
    spent = os.times()
    cpu = spent.children_user + spent.children_system - own.children_user - own.children_system
    busy, wall = _busy_seconds() - busy, time.perf_counter() - began
    others = max(0.0, busy - cpu) / wall / (os.cpu_count() or 1)
    return Measured(figures["rate"], figures["p50_ms"], figures["p99_ms"], figures["cpu_ms"], 0.0, others)


def medians(rounds: Iterable[Measured]) -> Measured:
    """Return each figure's median over rounds."""
    columns = zip(*(asdict(one).values() for one in rounds), strict=True)
    return Measured(*(median(column) for column in columns))


def ratio(rounds: Iterable[Measured], others: Iterable[Measured]) -> float:
    """Return the median over rounds of how many times the other's rate the first's is."""
    return median(mine.rate / theirs.rate for mine, theirs in zip(rounds, others, strict=True))


def _child(arguments: list[str], given: str = "") -> dict[str, float]:
    command = [sys.executable, "-m", *arguments]
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=CHILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise FailedError(f"{arguments[0]} took more than {CHILD_SECONDS} s") from None
    if done.returncode:
        raise FailedError((done.stderr.strip().splitlines() or [f"{arguments[0]} ended {done.returncode}"])[-1])
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _busy_seconds() -> float:
    """Return what all programs together have used of all cores, stolen time included."""
    user, nice, system, _, _, interrupt, soft, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + interrupt + soft + steal) / TICKS
