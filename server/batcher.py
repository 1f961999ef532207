"""Dynamic batching: pictures that wait for the same model at the same time share a run.

A worker takes what waits as soon as it is free, so that nobody waits while the device is idle. Each caller gets its
own rows; whose caller has gone is not run, and a run that nobody waits for any more is ended.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from analyzers.errors import PellucidError
from analyzers.runtime import Run
from server.call import traced
from server.deadline import deadline
from server.errors import ExpiredError, OverloadedError
from server.request import Images
from server.shared_run import Outputs, Settled, SharedRun, Work, settle
from server.statistics import Statistics
from server.workers import Workers

Watch = Callable[[Outputs], None]
T = TypeVar("T")

CERTAIN = 0.8  # share of the time left that is promised; a queue filled to the last moment makes everybody late


class Runner(Protocol):
    """Runs a batch once."""

    def __call__(self, images: list[Images], names: Sequence[str], run: Run) -> Outputs:
        """Return outputs by name, rows in the order of the pictures."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How pictures are put together.

    Attributes:
        max_batch: pictures in one run; a request with more runs alone.
        max_delay_seconds: how long pictures wait for others while something else runs.
        max_queue: pictures that may wait.
        instances: runs at a time.
    """

    max_batch: int
    max_delay_seconds: float
    max_queue: int
    instances: int


class Batcher:
    """One model's queue; everything in it is guarded by the workers' lock.

    Args:
        runner: runs a batch.
        workers: threads to run it in.
        limits: how pictures are put together.
        watch: is shown every run's outputs after they were answered; nobody where left out.
    """

    def __init__(self, runner: Runner, workers: Workers, limits: BatchLimits, watch: Watch | None = None) -> None:
        self.statistics = Statistics()
        self._watch = watch
        self._runner = runner
        self._workers = workers
        self._limits = limits
        self._queue: deque[Work] = deque()
        self._waiting = 0  # pictures
        self._running = 0  # runs
        self._seconds = 0.0  # a picture's share of a run, lately

    @property
    def waiting(self) -> int:
        """How many pictures wait."""
        return self._waiting

    async def run(
        self, images: Images, names: Sequence[str], finish: Callable[[Outputs, int], T], *, made_up: bool = False
    ) -> T:
        """Run pictures, alone or with those of other requests, and return finish(outputs, start).

        Args:
            images: uint8 (n, height, width, 3), or float32 (n, 3, height, width) in 0..1.
            names: which outputs are wanted.
            finish: called in a worker's thread with the whole batch's outputs and the first row that is ours.
            made_up: whether we changed the pictures, so that they say nothing of what clients send.

        Raises:
            OverloadedError: too many wait, or it could not be done before the deadline.
            ExpiredError: the deadline passed while it waited.
            ModelError: the run failed.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        work = Work(images, names, finish, deadline(), now, loop, loop.create_future(), traced(), made_up)
        with self._workers.lock:
            self._admit(len(images), work.arrived, work.deadline)
            self._queue.append(work)
            self._waiting += len(images)
            self._workers.wake(self)
        try:
            answer: T = await work.future
        except asyncio.CancelledError:
            self._abandon(work)
            raise
        finally:
            del work  # a failed future, its traceback and this frame would hold each other, pictures and model included
        return answer

    @property
    def waits(self) -> bool:
        """Whether something waits; the caller holds the lock."""
        return bool(self._queue)

    def take(self, now: float, *, idle: bool) -> Callable[[], None] | float | None:
        """Return what to run now, or in how many seconds to ask again, or None; the caller holds the lock.

        Args:
            now: time.monotonic().
            idle: whether nothing else runs.
        """
        self._drop_the_late(now)
        if not self._queue or self._running >= self._limits.instances:
            return None
        wait = self._queue[0].arrived + self._limits.max_delay_seconds - now
        if wait > 0 and not idle and self._waiting < self._limits.max_batch:
            return wait
        shared = self._next_run()
        self._running += 1
        return lambda: self._run(shared)

    def check(self, pictures: int) -> None:
        """Refuse pictures that could not be answered in time, before anybody reads them.

        Raises:
            OverloadedError: too many wait, or it could not be done before the deadline.
        """
        with self._workers.lock:
            self._admit(pictures, time.monotonic(), deadline())

    def _admit(self, pictures: int, now: float, until: float) -> None:
        ahead = self._waiting / max(1, self._limits.instances) * self._seconds
        if self._waiting and self._waiting + pictures > self._limits.max_queue:
            raise OverloadedError(ahead, f"{self._waiting} pictures wait for this model already; try again later")
        left = max(0.0, until - now)
        if self._running >= self._limits.instances and ahead + self._seconds > CERTAIN * left:
            raise OverloadedError(
                ahead, f"those who wait already take {ahead:.3g} s, the deadline is in {left:.3g} s; try again later"
            )

    def _drop_the_late(self, now: float) -> None:
        """Forget those whose caller is gone or whose answer would come too late; the others keep their places."""
        latest = now + self._seconds * min(self._limits.max_batch, self._waiting)
        while self._queue and (self._queue[0].dead or self._queue[0].deadline < latest):
            work = self._queue[0]
            if not work.dead and work.deadline > now and len(self._queue) == 1 and not self._running:
                return  # an estimate is no reason to leave the device idle
            self._queue.popleft()
            self._waiting -= len(work.images)
            if not work.dead:
                self.statistics.fail(now - work.arrived)
                settle([(work, None, _late(work, now, latest - now))])

    def _next_run(self) -> SharedRun:
        shared = SharedRun([])
        pictures = 0
        while self._queue:
            work = self._queue[0]
            if shared.works and pictures + len(work.images) > self._limits.max_batch:
                break
            self._queue.popleft()
            self._waiting -= len(work.images)
            if not work.dead:
                work.shared = shared
                shared.works.append(work)
                pictures += len(work.images)
        return shared

    def _abandon(self, work: Work) -> None:
        """Say that nobody waits for this any more; end its run if nobody waits for that."""
        with self._workers.lock:
            work.dead = True
            if work.shared is not None and all(other.dead for other in work.shared.works):
                work.shared.run.end()

    def _run(self, shared: SharedRun) -> None:
        started = time.monotonic()
        settled: Settled = []
        outputs: Outputs = {}
        try:
            outputs = self._runner([work.images for work in shared.works], shared.names, shared.run)
        except Exception as error:
            settled = [(work, None, error) for work in shared.works]
        ended = time.monotonic()
        if not settled:
            settled = shared.finish(outputs)
        self._account(shared, started, ended, failed=not outputs)
        settle(settled)
        if self._watch is not None and outputs and not any(work.made_up for work in shared.works):
            self._watch(outputs)
        del settled  # as in `run`
        shared.works.clear()

    def _account(self, shared: SharedRun, started: float, ended: float, *, failed: bool) -> None:
        done = time.monotonic()
        with self._workers.lock:
            self._running -= 1
            for work in shared.works:
                work.shared = None  # they would hold each other until the garbage collector comes by
            if not failed:
                each = (ended - started) / shared.pictures
                self._seconds = each if not self._seconds else 0.8 * self._seconds + 0.2 * each
            if self._queue:
                self._workers.wake(self)
        shared.note(started, ended)
        for work in shared.works:
            if failed:
                self.statistics.fail(done - work.arrived)
            else:
                queued, encoded = started - work.arrived, work.encoded - work.encoding
                self.statistics.answered(len(work.images), queued, encoded, done - work.arrived)
        if not failed:
            self.statistics.ran(shared.pictures, ended - started, done - ended)


def _late(work: Work, now: float, needed: float) -> PellucidError:
    if work.deadline <= now:
        return ExpiredError("the deadline passed before the model was free")
    left = work.deadline - now
    return OverloadedError(needed, f"a run takes {needed:.3g} s, the deadline is in {left:.3g} s; try again later")
