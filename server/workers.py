"""Workers: the threads that run models, shared by all of them in turn."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger("pellucid.workers")


class Queue(Protocol):
    """Something that has batches to run."""

    @property
    def waits(self) -> bool:
        """Whether something waits; the caller holds the lock."""

    def take(self, now: float, *, idle: bool) -> Callable[[], None] | float | None:
        """Return what to run now, or in how many seconds to ask again, or None for nothing."""


class Workers:
    """A fixed number of threads; each takes the next batch of the model whose turn it is.

    The thread that was busy last is the first to be woken: its core still has the model at hand.

    Attributes:
        lock: guards every queue and the order of turns.
    """

    def __init__(self, count: int) -> None:
        self.lock = threading.Lock()
        self._turns: deque[Queue] = deque()
        self._idle: list[threading.Semaphore] = []
        self._busy = 0
        self._stopping = False
        self._threads = [threading.Thread(target=self._work, name=f"run-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def wake(self, queue: Queue) -> None:
        """Say that a queue has something to run; the caller holds the lock."""
        if queue not in self._turns:
            self._turns.append(queue)
        if self._idle:
            self._idle.pop().release()

    def stop(self) -> None:
        """End the threads; what waits is not run."""
        with self.lock:
            self._stopping = True
            while self._idle:
                self._idle.pop().release()

    def _work(self) -> None:
        bell = threading.Semaphore(0)
        while (body := self._wait(bell)) is not None:
            try:
                body()
            except Exception:  # a batch settles its own errors; this is the last resort
                log.exception("a run failed outside of its batch")
            del body  # and with it the last batch, which would stay until there is another
            with self.lock:
                self._busy -= 1

    def _wait(self, bell: threading.Semaphore) -> Callable[[], None] | None:
        """Return the next batch, or None when it is time to stop."""
        while True:
            with self.lock:
                if self._stopping:
                    return None
                found = self._next()
                if callable(found):
                    self._busy += 1
                    return found
                self._idle.append(bell)
            if not bell.acquire(timeout=found):
                with self.lock:
                    if bell in self._idle:
                        self._idle.remove(bell)
                    else:  # it was rung in this very moment
                        bell.acquire()

    def _next(self) -> Callable[[], None] | float | None:
        """Return the next batch of whoever's turn it is, or in how many seconds to ask again, or None for nothing."""
        patience: float | None = None
        now = time.monotonic()
        for _ in range(len(self._turns)):
            queue = self._turns.popleft()
            found = queue.take(now, idle=self._busy == 0)
            if found is None:
                continue  # it wakes us when it has something
            if callable(found):
                if queue.waits:
                    self.wake(queue)  # there is more, for another worker
                return found
            self._turns.append(queue)
            patience = found if patience is None else min(patience, found)
        return patience
