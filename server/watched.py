"""Files that are read again when they change, and not while what is new in them is wrong."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Generic, TypeVar

from analyzers.errors import PellucidError

log = logging.getLogger("pellucid.files")

Value = TypeVar("Value")
Signature = tuple[tuple[int, ...], ...]


class Watched(Generic[Value]):
    """What files say, as of a moment ago; thread-safe.

    A file that goes away or is wrong leaves what was read last, and the log says so once.

    Args:
        paths: the files.
        read: reads them all.
        look_seconds: how often to look for changes.

    Raises:
        PellucidError: they are wrong now, as `read` says.
        OSError: they cannot be read now.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], Value], look_seconds: float = 1.0) -> None:
        self._paths, self._read, self._look_seconds = paths, read, look_seconds
        self._names = ", ".join(map(str, paths))
        self._lock = threading.Lock()
        self._looked = monotonic()
        self._signature = self._look()
        self._value = read()

    def value(self) -> Value:
        """Return what the files say."""
        if monotonic() - self._looked < self._look_seconds:
            return self._value
        with self._lock:
            self._looked = monotonic()
            if self._signature != (signature := self._look()):
                self._signature = signature
                self._replace()
            return self._value

    def _replace(self) -> None:
        try:
            self._value = self._read()
        except (PellucidError, OSError) as error:
            log.error("%s changed and cannot be used, so what was read before stays in use: %s", self._names, error)
        else:
            log.info("%s changed and was read again", self._names)

    def _look(self) -> Signature:
        """Return what changes when the files do, links followed."""
        return tuple(_signature(path) for path in self._paths)


def _signature(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
