"""Vetting: no model file is opened in the server's process before a limited child process has served it once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from analyzers.errors import ModelError

log = logging.getLogger("pellucid.repository")

PROGRAM = (sys.executable, "-P", "-m", "server.trial")
MAX_REPORT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What a model file may take in its trial.

    Attributes:
        seconds: wall clock, and as much of processor time.
        memory_bytes: address space, the runtime's own included.
        max_batch: pictures of its largest run.
    """

    seconds: float
    memory_bytes: int
    max_batch: int = 1


class Vetting:
    """Tries every content out once; thread-safe."""

    def __init__(self, limits: TrialLimits) -> None:
        self._limits = limits
        self._passed: set[bytes] = set()

    def __call__(self, data: bytes) -> None:
        """Try a file's content out, unless the very same bytes have passed before.

        Raises:
            ModelError: it did not pass; one sentence says why.
        """
        digest = hashlib.sha256(data).digest()
        if digest in self._passed:
            return
        vet(data, self._limits)
        self._passed.add(digest)


def vet(data: bytes, limits: TrialLimits, program: Sequence[str] = PROGRAM) -> None:
    """Try a file's content out in a child process that has little to lose.

    The child gets the bytes, not the path, so that what was tried is what is loaded.

    Args:
        data: the file's content.
        limits: what it may take.
        program: the child's command; it gets the limits as arguments and the content on stdin.

    Raises:
        ModelError: it took too long or too much memory, crashed, or is not an explained model that works.
    """
    started = time.monotonic()
    with _content(data) as stdin, _empty_folder() as folder:
        child = subprocess.Popen(
            [*program, str(limits.seconds), str(limits.memory_bytes), str(limits.max_batch)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(),
            start_new_session=True,  # Ctrl-C in the server's terminal is not for it
        )
        with child:
            try:
                child.wait(limits.seconds)
            except subprocess.TimeoutExpired:
                raise ModelError(_too_long(limits)) from None
            finally:
                child.kill()
            report = _report(child)
    peak = _read(child.returncode, report, limits)
    log.debug("trial passed in %.2f s with %d MiB", time.monotonic() - started, peak >> 20)


def _report(child: subprocess.Popen[bytes]) -> bytes:
    """Return what a child that has ended left in its pipe, as much of it as a report may have."""
    if child.stdout is None:
        return b""
    os.set_blocking(child.stdout.fileno(), False)
    try:
        return os.read(child.stdout.fileno(), MAX_REPORT_BYTES)
    except BlockingIOError:
        return b""


def _read(code: int, report: bytes, limits: TrialLimits) -> int:
    """Return the memory that the child took, in bytes.

    Raises:
        ModelError: anything but a clean report of success.
    """
    if code == -signal.SIGXCPU:
        raise ModelError(_too_long(limits))
    if code == -signal.SIGKILL:
        raise ModelError("it was killed in its trial; it may want more memory than this machine has")
    if code < 0:
        raise ModelError(f"it crashed in its trial ({_signal(-code)})")
    try:
        document = json.loads(report)
        problem, peak = document["problem"], document["peak_bytes"]
    except (ValueError, TypeError, KeyError, RecursionError):
        problem, peak = None, None
    if code != 0 or not isinstance(problem, str) or not isinstance(peak, int):
        raise ModelError(f"its trial ended without a report (exit code {code})")
    if problem:
        raise ModelError(problem)
    return peak


def _too_long(limits: TrialLimits) -> str:
    return f"its trial took longer than {limits.seconds:g} s and was ended"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _environment() -> dict[str, str]:
    """Return what the child needs to find its modules and libraries, and nothing else of ours."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "HOME") if name in os.environ}
    folders = [os.path.abspath(folder) for folder in sys.path]  # noqa: PTH100 (an empty one is where we are)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return kept | threads | {"ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": os.pathsep.join(folders)}


@contextmanager
def _content(data: bytes) -> Iterator[int]:
    """Put bytes where a child can read them and nobody else can change them."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("model", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _empty_folder() -> Iterator[str]:
    """Make a folder with nothing in it; the root folder where none can be made, as on a read-only disk."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="trial-")
    except OSError:
        yield "/"
        return
    with folder as name:
        yield name
