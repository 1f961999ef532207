"""Servers as children: started, waited for, their CPU time read, and ended with all that they have started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class NotStartedError(Exception):
    """A server ended, or did not answer in time."""


def end_children_too() -> None:
    """Let SIGTERM end this program as an error would, so that whoever started a server ends it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run a command in a session of its own and yield its process id; in the end, end every process of it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        yield child.pid
    finally:
        _end(child)


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process and of all that it has started and that lives."""
    return sum(_ticks(number) for number in family(process)) / TICKS


def family(process: int) -> list[int]:
    """Return a process and its living descendants, also those that have made a session of their own."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, place = [process], 0
    while place < len(found):
        found += children.get(found[place], [])
        place += 1
    return found


def wait_until_listening(process: int, port: int, seconds: float) -> None:
    """Wait until somebody takes connections on a port.

    Raises:
        NotStartedError: nobody does in time, or the process has ended.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if listens(port):
            return
        if not _alive(process):
            raise NotStartedError("it ended before it listened")
        time.sleep(0.1)
    raise NotStartedError(f"nobody listens after {seconds:g} s")


def listens(port: int) -> bool:
    """Say whether somebody takes connections on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _end(child: subprocess.Popen[bytes]) -> None:
    members = family(child.pid)
    for number, patience in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
        for process in members if number == signal.SIGKILL else [child.pid]:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue
        until = time.monotonic() + patience
        while time.monotonic() < until and any(_alive(process) for process in members):
            child.poll()
            time.sleep(0.1)
    child.wait()


def _stat(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the command's name; none if it has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rsplit(")", 1)[1].split()


def _ticks(process: int) -> int:
    fields = _stat(process)
    return int(fields[11]) + int(fields[12]) if fields else 0


def _alive(process: int) -> bool:
    fields = _stat(process)
    return bool(fields) and fields[0] != "Z"
