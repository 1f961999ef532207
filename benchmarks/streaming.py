"""Whether class features can be found on any number of pictures: memory and rate of the fit beside plain inference.

Pictures are drawn as they are asked for, so that no data set is in memory. The network has 2,048 features and 1,000
classes; both rates are taken in turns, in chunks, within one process, and include making the pictures.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import numpy as np
import torch

from analyzers.attach import fit
from analyzers.plain import Plain, probe
from analyzers.progress import track
from benchmarks.latency import processor
from training.backbones import BACKBONES
from training.export import export
from training.network import Network

CLASSES, BATCH = 1000, 32


def pictures(count: int, size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches of noise whose labels take turns."""
    random = np.random.default_rng(seed)
    for start in range(0, count, BATCH):
        n = min(BATCH, count - start)
        yield random.random((n, 3, size, size), np.float32), (start + np.arange(n)) % CLASSES


def main() -> None:
    """Print the rates and the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--decompose", choices=("kept", "refitted"), help="also fit the decomposed layer")
    options = parser.parse_args()
    torch.manual_seed(0)
    network = Network(BACKBONES["resnet50"](), CLASSES, size=options.size)
    plain = export(network, tuple(map(str, range(CLASSES))), options.size)
    del network
    chunk = max(2 * CLASSES, options.pictures // 2)
    plain_only(plain, CLASSES, options.size)  # warms up, so that the memory before the fit holds the whole runtime
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    times: tuple[list[float], list[float]] = ([], [])
    for number in track(range(-(-options.pictures // chunk)), "chunks", -(-options.pictures // chunk)):
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.process_time()
            if which:
                fit(plain, pictures(chunk, options.size, number), decomposed=options.decompose)
            else:
                plain_only(plain, chunk, options.size)
            times[which].append((time.process_time() - began) / chunk)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    alone, fitted = (float(np.median(values)) for values in times)
    seen = len(times[1]) * chunk
    print(f"{processor()}, ResNet-50 at {options.size}, {CLASSES} classes x 2048 features, {seen} pictures of each")
    print(f"plain inference {1e3 * alone:.2f} ms of CPU time a picture, fit {1e3 * fitted:.2f} ms")
    print(f"rate of the fit {alone / fitted:.3f} times that of plain inference")
    print(f"memory {before:.2f} GiB before the fit, {after:.2f} GiB at most: {after - before:.2f} GiB more")


def plain_only(plain: Plain, count: int, size: int) -> None:
    """Run the plain model over as many pictures."""
    session, _ = probe(plain)
    for images, _ in pictures(count, size, 0):
        session.run_images(plain.manifest, images)


if __name__ == "__main__":
    main()
