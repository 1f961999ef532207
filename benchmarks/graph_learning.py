"""What learning an explanatory graph costs: CPU time and memory at ResNet-18's size, and against plain loops.

Maps are made up: bumps that move together from picture to picture, and some that do not. Forward passes through a
network are not part of it. With `--share 4` a quarter of each layer's filters is learned; filters are learned one by
one, so that the whole is four times that, and the table says so.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from analyzers.manifest import Grid
from benchmarks.latency import processor
from training.explanatory_graph import learn_graph
from training.feature_cache import Maps
from training.graph_blocks import Workspace
from training.graph_em import Lattice, best_cells, expectation, positions
from training.graph_filter import SPREAD, first_places
from training.graph_job import GraphJob, GraphPlan, LayerPlan
from training.graph_parents import follow_root

LAYERS = ((7, 512, 10), (14, 256, 20), (28, 128, 40))  # cells a side, filters, nodes of a filter
SIDE, BUMPS, BATCH = 224, 6, 50


class MadeUp:
    """Maps of bumps; counts the time that making them takes."""

    def __init__(self, pictures: int, share: int) -> None:
        self.pictures, self.share, self.seconds = pictures, share, 0.0

    def batches(self, tensors: Sequence[str]) -> Iterator[Maps]:
        """Yield the maps of all pictures, a batch at a time."""
        for start in range(0, self.pictures, BATCH):
            began = time.process_time()
            count = min(BATCH, self.pictures - start)
            maps = {name: self._layer(int(name), start, count) for name in tensors}
            self.seconds += time.process_time() - began
            yield maps

    def _layer(self, place: int, start: int, count: int) -> np.ndarray:
        cells, filters, _ = LAYERS[place]
        filters //= self.share
        fixed, drawn = np.random.default_rng(place), np.random.default_rng((place, start))
        shift = np.random.default_rng(start).uniform(-0.15, 0.15, (count, 1, 2))
        u = (np.arange(cells) + 0.5) / cells
        maps = np.zeros((count, filters, cells, cells), np.float32)
        for number in range(BUMPS):
            place_of = fixed.uniform(0.3, 0.7, (1, filters, 2)) + shift
            if number >= BUMPS // 2:
                place_of = drawn.random((count, filters, 2))
            y, x = (np.exp(-(((u - place_of[..., a, None]) * cells / 0.9) ** 2)) for a in (0, 1))
            maps += (y[..., :, None] * x[..., None, :]).astype(np.float32)
        return maps


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--share", type=int, default=4, help="learn one filter in so many (default 4)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{processor()}, torch {torch.__version__}, CPU, {options.threads} thread(s)\n")
    slower = against_loops()
    print(f"one E-step and search, 28 x 28 cells, 40 nodes: plain loops take {slower:.0f} times as long\n")
    source = MadeUp(options.pictures, options.share)
    job = made_up_job(options.pictures, options.share, options.threads)
    before, began, wall = _peak(), time.process_time(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        graph = learn_graph(job, source, Workspace(Path(folder) / "blocks"))
    seconds, wall = time.process_time() - began - source.seconds, time.perf_counter() - wall
    print("| pictures | filters | nodes | CPU minutes | all filters, CPU minutes | cache GB | memory GB | before GB |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {options.pictures} | {' + '.join(str(layer.filters) for layer in job.layers)}"
        f" | {sum(int((layer.filter >= 0).sum()) for layer in graph.layers)} | {seconds / 60:.2f}"
        f" | {seconds / 60 * options.share:.1f} | {float(graph.settings['cache_bytes']) / 1e9:.2f}"
        f" | {_peak():.2f} | {before:.2f} |"
    )
    print(f"\n{wall:.0f} s by the clock, of which {source.seconds:.0f} s of CPU made the maps up")


def made_up_job(pictures: int, share: int, threads: int) -> GraphJob:
    """Return the job of learning one graph of the made-up maps."""
    layers = tuple(
        LayerPlan(str(place), filters // share, _grid(cells), nodes)
        for place, (cells, filters, nodes) in enumerate(LAYERS)
    )
    plan = GraphPlan(np.arange(pictures), np.zeros(0, np.int64), tuple(None for _ in layers))
    return GraphJob(layers=layers, graphs=(plan,), size=(SIDE, SIDE), threads=threads)


def against_loops(pictures: int = 2, cells: int = 28, nodes: int = 40) -> float:
    """Return how much longer plain loops take for one filter's E-step and search, on the same pictures."""
    u = (torch.arange(cells) + 0.5) / cells
    activation, lattice = torch.rand(200, cells, cells), Lattice(u, u[None])
    prior = first_places((0,), nodes, u, u)
    expected = follow_root(prior, torch.zeros(200, 2), SPREAD)

    def fast(count: int) -> float:
        began = time.process_time()
        expectation(activation[:count], lattice, expected.take(slice(count)), None)
        positions(best_cells(activation[:count], lattice, expected.take(slice(count)))[0], lattice)
        return (time.process_time() - began) / count

    fast(200)
    began = time.process_time()
    for picture in activation[:pictures].tolist():
        loops(picture, u.tolist(), prior.tolist())
    return (time.process_time() - began) / pictures / float(np.median([fast(200) for _ in range(5)]))


def loops(f: list[list[float]], u: list[float], prior: list[list[float]]) -> tuple[list[float], list[int]]:
    """Do the E-step and the search of one picture cell by cell and node by node."""
    from math import exp, log

    cells, claimed, best = range(len(u)), [0.0] * len(prior), [0] * len(prior)
    table = [
        [[exp(-((u[h] - y) ** 2 + (u[w] - x) ** 2) / (2 * SPREAD**2)) for w in cells] for h in cells] for y, x in prior
    ]
    noise = 0.1 * sum(sum(map(sum, one)) for one in table) / len(prior)
    highest = [float("-inf")] * len(prior)
    for h in cells:
        for w in cells:
            total = sum(one[h][w] for one in table) + noise
            for n, one in enumerate(table):
                claimed[n] += f[h][w] * one[h][w] / total
                score = log(f[h][w] + 1e-6) + log(one[h][w] + 1e-300)
                if score > highest[n]:
                    highest[n], best[n] = score, h * len(u) + w
    return claimed, best


def _grid(cells: int) -> Grid:
    step = SIDE / cells
    return Grid(cells=(cells, cells), stride=(step, step), offset=(step / 2, step / 2), receptive_field=(step, step))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
