"""Statistics: what a model has answered since it was loaded, counted where it happens."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace


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
class Counts:
    """Everything that is counted.

    Attributes:
        pictures: answered.
        runs: that answered them.
        success: answered requests, from arrival to answer.
        fail: requests that were refused late, expired or failed.
        queue: answered requests, from arrival to the start of their run.
        infer: runs of the model.
        output: taking the answers out of them.
        last: time of the last run, seconds since the epoch; 0 for never.
        batches: runs by number of pictures.
    """

    pictures: int = 0
    runs: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)
    last: float = 0.0
    batches: dict[int, tuple[Duration, Duration]] = field(default_factory=dict)


class Statistics:
    """Counts of one model; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()

    def answered(self, pictures: int, queued: float, whole: float) -> None:
        """Count a request that was answered: how long it waited and took in all, in seconds."""
        with self._lock:
            self._counts.pictures += pictures
            self._counts.queue.add(queued)
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
                queue=replace(counts.queue),
                infer=replace(counts.infer),
                output=replace(counts.output),
                batches={size: (replace(a), replace(b)) for size, (a, b) in counts.batches.items()},
            )
