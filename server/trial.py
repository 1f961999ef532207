"""The trial of a model file, in a process of its own: `python -m server.trial SECONDS BYTES MAX_BATCH < model.onnx`.

It limits itself before it looks at a byte of the file, does with it all that the server would, on the CPU, and writes
one line of JSON. Nothing in it trusts the file; what ONNX Runtime does with it, it does here first.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import signal
import sys
from pathlib import Path

from analyzers.errors import ModelError
from server.check import open_checked

OPEN_FILES = 16
MAX_PROBLEM = 500  # characters; it may quote names from the file
# What ONNX Runtime and numpy say when there is no more memory; neither has an exception of its own for it.
_MEMORY = ("bad_alloc", "bad allocation", "to allocate", "length_error")
_PR_SET_PDEATHSIG = 1


def main(seconds: float, memory_bytes: int, max_batch: int) -> None:
    """Try out the file on stdin and report on stdout; never returns."""
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # whatever libraries print is no report
        os.dup2(nothing, stream)
    _limit(seconds, memory_bytes)
    problem = _try(sys.stdin.buffer.read(), memory_bytes, max_batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    os.write(report, json.dumps({"problem": problem[:MAX_PROBLEM], "peak_bytes": peak}).encode())
    os._exit(0)


def _limit(seconds: float, memory_bytes: int) -> None:
    """Take from this process what a trial does not need; what a system does not know of stays as it is."""
    with contextlib.suppress(OSError):  # where memory runs out, this process goes first and not the server
        Path("/proc/self/oom_score_adj").write_text("1000")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CPU, math.ceil(seconds)),
        (resource.RLIMIT_AS, memory_bytes),
    ):
        hard = resource.getrlimit(what)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (least, least))


def _try(data: bytes, memory_bytes: int, max_batch: int) -> str:
    """Return what is wrong with the file, nothing if it can be served."""
    too_much = f"it wants more than {memory_bytes >> 20} MiB of memory"
    try:
        open_checked(data, device="cpu", threads=1, max_batch=max_batch)
    except ModelError as error:
        return too_much if any(word in str(error) for word in _MEMORY) else str(error)
    except MemoryError:
        return too_much
    except Exception as error:  # a damaged file may fail anywhere
        return f"its trial failed with {type(error).__name__}"
    return ""


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
