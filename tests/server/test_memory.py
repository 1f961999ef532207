"""What requests and models have let go of goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

MIB = 2**20

# Heaps of several threads, all emptied after a large block was freed: what glibc keeps of them then.
THREADS = """
import sys, threading
from pathlib import Path
import numpy as np
from server.memory import give_back_memory, keep_little_memory

if sys.argv[1] == "limited":
    keep_little_memory()

def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def fill_and_empty():
    blocks = [np.ones(100_000, np.uint8) for _ in range(100)]
    together.wait()
    del blocks
    together.wait()

np.ones(30 * 2**20, np.uint8)
before, together = rss(), threading.Barrier(8)
threads = [threading.Thread(target=fill_and_empty) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
give_back_memory()
print(rss() - before)
"""


def kept(how: str) -> int:
    """Return how many bytes a process still holds of the 80 MB that its threads have freed."""
    command = [sys.executable, "-c", THREADS, how]
    return int(subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told what to keep")
def test_little_is_kept_of_what_threads_have_freed() -> None:
    assert kept("limited") < 16 * MIB < kept("unlimited")
