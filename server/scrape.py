"""Asking server processes for their readings: this one, or others through a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

from server.readings import Reading

Read = Callable[[], Reading]


class Source(Protocol):
    """A process that can be asked."""

    @property
    def gone(self) -> bool:
        """Whether it has ended, as far as one can tell without asking."""

    def ask(self) -> None:
        """Ask it for a reading; raises OSError if it is gone."""

    def answer(self, until: float) -> Reading | None:
        """Return the reading, or None if it does not come until then (`time.monotonic`).

        Raises:
            OSError, EOFError: it is gone.
        """


class Own:
    """This process."""

    gone = False

    def __init__(self, read: Read) -> None:
        self._read = read

    def ask(self) -> None:
        """Nobody needs to be asked."""

    def answer(self, until: float) -> Reading | None:
        """Read at once."""
        return self._read()


class Other:
    """A process at the other end of a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._asked = 0
        self._answered = 0

    @property
    def gone(self) -> bool:
        """Whether the other end is closed; nobody there speaks unasked."""
        try:
            return self._asked == self._answered and self._pipe.poll()
        except OSError:
            return True

    def ask(self) -> None:
        """Ask, unless it still has not answered the last time."""
        if self._asked == self._answered:
            self._pipe.send(None)
            self._asked += 1

    def answer(self, until: float) -> Reading | None:
        """Wait for it."""
        if not self._pipe.poll(max(0.0, until - time.monotonic())):
            return None
        reading: Reading = self._pipe.recv()
        self._answered += 1
        return reading


def answer_others(pipe: Connection, read: Read) -> None:
    """Answer whoever asks through the pipe, in a thread of its own, until nobody can any more."""

    def work() -> None:
        try:
            while True:
                pipe.recv()
                pipe.send(read())
        except (EOFError, OSError):
            return

    threading.Thread(target=work, name="metrics", daemon=True).start()
