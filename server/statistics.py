"""Statistics: what a model has answered since it was loaded, counted where it happens."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, field, replace

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of a Histogram's buckets in seconds; one more bucket is above them."""


@dataclass(slots=True)
class Duration:
    """How often, and how long in all, in seconds."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class Histogram(Duration):
    """The same, and how often in each bucket of `BUCKETS`."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.seconds += seconds
        self.buckets[bisect_left(BUCKETS, seconds)] += 1

    def copy(self) -> Histogram:
        """Return one that no longer changes."""
        return Histogram(self.count, self.seconds, self.buckets.copy())


@dataclass(slots=True)
class Counts:
    """Everything that is counted.

    Attributes:
        pictures: answered.
        runs: that answered them.
        success: answered requests, from arrival to answer.
        fail: requests that were refused late, expired or failed.
        decode: requests whose pictures were read, waiting for a thread included.
        queue: answered requests, from arrival to the start of their run.
        infer: runs of the model.
        encode: answered requests, from the run's outputs to the answer.
        output: the same, all requests of a run together.
        last: time of the last run, seconds since the epoch; 0 for never.
        batches: runs by number of pictures.
    """

    pictures: int = 0
    runs: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    decode: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)
    infer: Histogram = field(default_factory=Histogram)
    encode: Histogram = field(default_factory=Histogram)
    output: Duration = field(default_factory=Duration)
    last: float = 0.0
    batches: dict[int, tuple[Duration, Duration]] = field(default_factory=dict)


class Statistics:
    """Counts of one model; thread-safe.

    Attributes:
        since: when they began, nanoseconds since the epoch.
    """

    def __init__(self) -> None:
        self.since = time.time_ns()
        self._lock = threading.Lock()
        self._counts = Counts()

    def decoded(self, seconds: float) -> None:
        """Count a request whose pictures were read, and how long that took."""
        with self._lock:
            self._counts.decode.add(seconds)

    def answered(self, pictures: int, queued: float, encoded: float, whole: float) -> None:
        """Count a request that was answered: the seconds that it waited, its answer was made, and it took in all."""
        with self._lock:
            self._counts.pictures += pictures
            self._counts.queue.add(queued)
            self._counts.encode.add(encoded)
            self._counts.success.add(whole)

    def fail(self, whole: float) -> None:
        """Count a request that was not answered, and how long it took, in seconds."""
        with self._lock:
            self._counts.fail.add(whole)

    def ran(self, pictures: int, infer: float, output: float) -> None:
        """Count a run: its pictures, the seconds of the model, and those of taking the answers out."""
        with self._lock:
            counts = self._counts
            counts.runs += 1
            counts.last = time.time()
            counts.infer.add(infer)
            counts.output.add(output)
            of_size = counts.batches.setdefault(pictures, (Duration(), Duration()))
            of_size[0].add(infer)
            of_size[1].add(output)

    def snapshot(self) -> Counts:
        """Return a copy that no longer changes."""
        with self._lock:
            counts = self._counts
            return replace(
                counts,
                success=replace(counts.success),
                fail=replace(counts.fail),
                decode=counts.decode.copy(),
                queue=counts.queue.copy(),
                infer=counts.infer.copy(),
                encode=counts.encode.copy(),
                output=replace(counts.output),
                batches={size: (replace(a), replace(b)) for size, (a, b) in counts.batches.items()},
            )
