"""The bare loop: one session, as the server opens it, run by a number of threads as fast as it goes.

Run as a process of its own: file, threads, seconds before anything counts, seconds; a JSON object on standard output.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

from analyzers.manifest import Manifest
from analyzers.runtime import open_session


def run(file: Path, threads: int, warm_seconds: float, seconds: float) -> dict[str, float]:
    """Return runs per second, CPU ms per run and the median and the 99th percentile of their time in ms."""
    session = open_session(file, threads=1)
    manifest = Manifest.from_metadata(session.metadata)
    constant = None if manifest.class_features is None else manifest.class_features.head
    names = [name for name in session.outputs if name != constant]
    size = manifest.input
    images = np.random.default_rng(0).random((1, 3, size.height, size.width), np.float32)
    feeds = {size.tensor: images}
    session.run(feeds, names)
    took: list[list[float]] = [[] for _ in range(threads)]
    counts_from = time.perf_counter() + warm_seconds
    counts_to = counts_from + seconds

    def loop(mine: list[float]) -> None:
        while (began := time.perf_counter()) < counts_to:
            session.run(feeds, names)
            if began >= counts_from:
                mine.append(time.perf_counter() - began)

    workers = [threading.Thread(target=loop, args=(mine,)) for mine in took]
    for worker in workers:
        worker.start()
    time.sleep(warm_seconds)
    cpu = time.process_time()
    time.sleep(seconds)
    cpu = time.process_time() - cpu
    for worker in workers:
        worker.join()
    times = np.concatenate(took)
    return {
        "rate": len(times) / seconds,
        "cpu_ms": 1e3 * cpu / len(times),
        "p50_ms": 1e3 * float(np.median(times)),
        "p99_ms": 1e3 * float(np.quantile(times, 0.99)),
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))))
