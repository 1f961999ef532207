"""Readings: what a server process has counted at one moment, and the sum over processes, in which no counter falls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from prometheus_client import ProcessCollector

from server.batcher import Batcher
from server.calls import Calls
from server.drift import Window
from server.edge import Gate
from server.repository import Repository
from server.statistics import Counts, Duration, Histogram

Key = tuple[str, str]
"""A model's name and version."""


@dataclass(frozen=True, slots=True)
class ModelReading:
    """One version of a model.

    Attributes:
        ready: whether it answers.
        provider: what runs it; "" where nothing does.
        since: when its counts began, nanoseconds since the epoch; another number means that they began anew.
        counts: of what it answered; None where it is not ready.
        waiting: pictures in its queue.
        window: of what it answered lately beside its baseline; None without one.
    """

    ready: bool = False
    provider: str = ""
    since: int = 0
    counts: Counts | None = None
    waiting: int = 0
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One process.

    Attributes:
        codes: calls by method and status.
        seconds: how long they took, by method.
        refused: errors by reason.
        running: calls under way.
        models: every version that was loaded or tried.
        process: CPU time, memory and files, by the usual names.
    """

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: dict[str, Histogram] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    running: int = 0
    models: dict[Key, ModelReading] = field(default_factory=dict)
    process: dict[str, float] = field(default_factory=dict)


def read(calls: Calls, gate: Gate, repository: Repository) -> Reading:
    """Read what this process has counted; any thread may."""
    models: dict[Key, ModelReading] = {}
    for entry in repository.entries:
        model = entry.model
        models[entry.name, entry.version] = (
            ModelReading()
            if model is None
            else _read_model(
                model.session.provider, model.batcher, None if model.drift is None else model.drift.window()
            )
        )
    return Reading(
        codes=calls.codes.copy(),
        seconds={method: histogram.copy() for method, histogram in calls.seconds.items()},
        refused=calls.refused.copy(),
        running=gate.requests,
        models=models,
        process={family.name: family.samples[0].value for family in ProcessCollector(registry=None).collect()},
    )


def _read_model(provider: str, batcher: Batcher, window: Window | None) -> ModelReading:
    statistics = batcher.statistics
    return ModelReading(True, provider, statistics.since, statistics.snapshot(), batcher.waiting, window)


class Tally:
    """The readings of several processes, and what those had counted that are gone, or whose model was loaded anew."""

    def __init__(self) -> None:
        self._latest: dict[int, Reading] = {}
        self._calls = Reading()
        self._models: dict[Key, Counts] = {}
        self._cpu_seconds = 0.0

    def update(self, process: int, reading: Reading) -> None:
        """Take a process's newest reading."""
        before = self._latest.get(process, Reading()).models
        for key, model in before.items():
            now = reading.models.get(key)
            if model.counts is not None and (now is None or now.since != model.since):
                self._keep(key, model.counts)
        self._latest[process] = reading

    def leave(self, process: int) -> None:
        """Keep what a process had counted that has ended; what it held is no more."""
        gone = self._latest.pop(process, Reading())
        self._calls = _calls_of((self._calls, replace(gone, running=0)))
        self._cpu_seconds += gone.process.get(CPU_SECONDS, 0.0)
        for key, model in gone.models.items():
            if model.counts is not None:
                self._keep(key, model.counts)

    def _keep(self, key: Key, counts: Counts) -> None:
        self._models[key] = counts_of((self._models.get(key, Counts()), counts))

    @property
    def processes(self) -> int:
        """How many processes there are."""
        return len(self._latest)

    def calls(self) -> Reading:
        """Return the calls of all processes together, and their CPU time, memory and files."""
        readings = list(self._latest.values())
        return replace(_calls_of((self._calls, *readings)), process=_processes_of(readings, self._cpu_seconds))

    def models(self) -> dict[Key, ModelReading]:
        """Return the models of all processes together; ready where every process has it ready."""
        tables = [reading.models for reading in self._latest.values()]
        keys = {key for table in tables for key in table}
        for key in self._models.keys() - keys:
            del self._models[key]  # nobody knows of it any more
        return {key: self._model(key, [table.get(key, ModelReading()) for table in tables]) for key in sorted(keys)}

    def _model(self, key: Key, each: list[ModelReading]) -> ModelReading:
        window: Window | None = None
        for one in each:
            if one.window is not None:
                window = one.window if window is None else window.joined(one.window)
        kept = self._models.get(key, Counts())
        counts = [one.counts for one in each if one.counts is not None]
        return ModelReading(
            provider=next((one.provider for one in each if one.provider), ""),
            ready=all(one.ready for one in each),
            counts=counts_of((kept, *counts)) if counts or key in self._models else None,
            waiting=sum(one.waiting for one in each),
            window=window,
        )


CPU_SECONDS = "process_cpu_seconds"
_LEAST = ("process_start_time_seconds", "process_max_fds")  # the others are added up


def _processes_of(readings: list[Reading], gone_cpu_seconds: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for reading in readings:
        for name, value in reading.process.items():
            found[name] = min(found.get(name, value), value) if name in _LEAST else found.get(name, 0.0) + value
    if CPU_SECONDS in found:
        found[CPU_SECONDS] += gone_cpu_seconds
    return found


def _calls_of(readings: Iterable[Reading]) -> Reading:
    codes: Counter[tuple[str, str]] = Counter()
    refused: Counter[str] = Counter()
    seconds: dict[str, Histogram] = {}
    running = 0
    for reading in readings:
        codes.update(reading.codes)
        refused.update(reading.refused)
        for method, histogram in reading.seconds.items():
            _add(seconds.setdefault(method, Histogram()), histogram)
        running += reading.running
    return Reading(codes, seconds, refused, running)


def counts_of(each: Iterable[Counts]) -> Counts:
    """Add up what is told of a model's counts."""
    total = Counts()
    for counts in each:
        total.pictures += counts.pictures
        total.runs += counts.runs
        _add(total.decode, counts.decode)
        _add(total.queue, counts.queue)
        _add(total.infer, counts.infer)
        _add(total.encode, counts.encode)
        for size, (infer, output) in counts.batches.items():
            mine = total.batches.setdefault(size, (Duration(), Duration()))
            for own, other in zip(mine, (infer, output), strict=True):
                own.count += other.count
                own.seconds += other.seconds
    return total


def _add(total: Histogram, other: Histogram) -> None:
    total.count += other.count
    total.seconds += other.seconds
    total.buckets = [mine + theirs for mine, theirs in zip(total.buckets, other.buckets, strict=True)]
