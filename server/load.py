"""Load a model file: read it once, try those bytes out elsewhere, then open and check the same bytes here."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from analyzers.baseline import Baseline
from analyzers.errors import ModelError
from analyzers.execution import Device, Execution
from analyzers.runtime import Session
from server.batcher import BatchLimits
from server.check import open_checked, worthwhile_batch
from server.drift import Drift
from server.model import ExplainedModel
from server.workers import Workers

log = logging.getLogger("pellucid.repository")

MAX_FILE_BYTES = 2**31 - 1  # what a protobuf message can hold
ALONE = BatchLimits(max_batch=1, max_delay_seconds=0, max_queue=1, instances=1)

Vet = Callable[[bytes], None]


def load_model(
    path: Path,
    name: str,
    version: str,
    *,
    device: Device,
    threads: int,
    execution: Execution | None = None,
    workers: Workers | None = None,
    limits: BatchLimits = ALONE,
    vet: Vet | None = None,
    drift: bool = False,
) -> ExplainedModel:
    """Load a model file and check that it does what its manifest says.

    Args:
        path: of the file.
        name: what to call it.
        version: of that name.
        device: where it runs.
        threads: within one run.
        execution: which provider runs it, and how.
        workers: who runs what is asked through its queue; nobody where left out.
        limits: of that queue.
        vet: tries the bytes out before this process does anything with them, and raises if they are not to be used.
        drift: whether to compare what it answers lately with its baseline.

    Raises:
        ModelError: it is missing, truncated, not ONNX, does not pass its trial, or does not fit its manifest.
    """
    data = read_file(path)
    if vet is not None:
        vet(data)
    if execution is not None:  # OpenVINO has threads of its own, which have to be as many as ours
        execution = execution.model_copy(update={"openvino": execution.openvino.for_runs(limits.instances)})
    session, manifest, head = open_checked(
        data, device=device, threads=threads, max_batch=limits.max_batch, execution=execution
    )
    _log_execution(f"{name}/{version}", session)
    size = worthwhile_batch(session, manifest, limits.max_batch)
    if size < limits.max_batch:
        log.info("%s/%s runs pictures one by one: batches do not make it faster here", name, version)
    baseline = Baseline.from_metadata(session.metadata) if drift else None
    return ExplainedModel.of(
        name,
        version,
        session,
        manifest,
        sha256=hashlib.sha256(data).hexdigest(),
        head=head,
        workers=workers or Workers(0),
        limits=replace(limits, max_batch=size),
        drift=None if baseline is None else Drift(baseline, manifest),
    )


def _log_execution(model: str, session: Session) -> None:
    """Say what runs a model; where it runs decides how fast it is."""
    said = " ".join(f"{name}={value}" for name, value in session.options.items())
    log.info("%s runs on %s%s%s", model, session.provider, ", " * bool(said), said)
    if session.on_cpu:
        log.warning("%s: the CPU runs some of its nodes, with copies before and after: %s", model, session.on_cpu)


def read_file(path: Path) -> bytes:
    """Read an ordinary file whole; a device, pipe or folder in its place is not even opened.

    Raises:
        ModelError: it is missing, no ordinary file, too large, or changed meanwhile.
    """
    try:
        _refuse_odd(path.stat(), path.name)
        # Not to hang on a pipe that took the file's place in this very moment.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            before = os.fstat(file.fileno())
            _refuse_odd(before, path.name)
            data = file.read(before.st_size)
            after = os.fstat(file.fileno())
    except FileNotFoundError:
        raise ModelError(f"there is no {path.name}") from None
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from None
    if (len(data), after.st_size, after.st_mtime_ns) != (before.st_size, before.st_size, before.st_mtime_ns):
        raise ModelError(f"{path.name} changed while it was read; it is read again when it has changed once more")
    return data


def _refuse_odd(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{name} is not an ordinary file")
    if status.st_size > MAX_FILE_BYTES:
        raise ModelError(f"{name} has {status.st_size} bytes; an ONNX file has at most {MAX_FILE_BYTES}")
