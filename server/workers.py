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

    def take(self, now: float, *, idle: bool) -> Callable[[], None] | float | None:
        """Return what to run now, or in how many seconds to ask again, or None for nothing."""


class Workers:
    """A fixed number of threads; each takes the next batch of the model whose turn it is.

    Attributes:
        lock: guards every queue and the order of turns.
    """

    def __init__(self, count: int) -> None:
        self.lock = threading.Condition(threading.Lock())
        self._turns: deque[Queue] = deque()
        self._busy = 0
        self._stopping = False
        self._threads = [threading.Thread(target=self._work, name=f"run-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def wake(self, queue: Queue) -> None:
        """Say that a queue has something to run; the caller holds the lock."""
        if queue not in self._turns:
            self._turns.append(queue)
        self.lock.notify()

    def stop(self) -> None:
        """End the threads; what waits is not run."""
        with self.lock:
            self._stopping = True
            self.lock.notify_all()

    def _work(self) -> None:
        while (body := self._wait()) is not None:
            try:
                body()
            except Exception:  # a batch settles its own errors; this is the last resort
                log.exception("a run failed outside of its batch")
            with self.lock:
                self._busy -= 1

    def _wait(self) -> Callable[[], None] | None:
        """Return the next batch, or None when it is time to stop."""
        with self.lock:
            while not self._stopping:
                found = self._next()
                if callable(found):
                    self._busy += 1
                    self.lock.notify()  # there may be more for another worker
                    return found
                self.lock.wait(found)
        return None

    def _next(self) -> Callable[[], None] | float | None:
        """Return the next batch of whoever's turn it is, or in how many seconds to ask again, or None for nothing."""
        patience: float | None = None
        now = time.monotonic()
        for _ in range(len(self._turns)):
            queue = self._turns.popleft()
            found = queue.take(now, idle=self._busy == 0)
            if found is None:
                continue  # it wakes us when it has something
            self._turns.append(queue)
            if callable(found):
                return found
            patience = found if patience is None else min(patience, found)
        return patience
