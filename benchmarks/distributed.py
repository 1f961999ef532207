"""What a second process brings, and what sharing costs: an epoch of learning and an explanatory graph.

    python -m benchmarks.distributed --json distributed.json

One process of one thread, one process of two threads, and two processes of one thread each, started by torchrun on this
machine, take turns in each round, in another order each time. The same cores then do the same work; what two processes
take beyond one with two threads is the price of sharing. Times are by the clock, of learning alone: starting processes
and drawing pictures is not part of them. Needs two cores and nothing else on them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from analyzers.progress import track
from benchmarks.graph_learning import MadeUp, made_up_job
from benchmarks.record import Line, Record
from training.creatures import creatures
from training.data import Batches
from training.explanatory_graph import learn_graph
from training.graph_blocks import Workspace
from training.job import Job
from training.loop import learn
from training.ranks import Ranks, joined

SIZE, CLASSES = 64, 8


@dataclass(frozen=True, slots=True)
class Setting:
    """How a run is divided."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads}"


ONE, THREADS, PROCESSES = Setting(1, 1), Setting(1, 2), Setting(2, 1)
SETTINGS = (ONE, THREADS, PROCESSES)


def main() -> None:
    """Measure and print a Markdown table."""
    options = _options()
    if options.child is not None:
        with joined() as ranks:
            _measured(options, ranks)
        return
    seconds: dict[tuple[str, Setting], list[float]] = defaultdict(list)
    turns = [SETTINGS[(number + place) % 3] for number in range(options.rounds) for place in range(3)]
    for setting in track(turns, "rounds x processes", len(turns)):
        for what, took in _run(options, setting).items():
            seconds[what, setting].append(took)
    lines: list[Line] = []
    for what in ("epoch", "graph"):
        threads = seconds[what, THREADS]
        for setting in SETTINGS:
            own = seconds[what, setting]
            ratio = median(a / b for a, b in zip(own, threads, strict=True))
            lines.append(
                {
                    "what": what,
                    "processes": setting.processes,
                    "threads": setting.threads,
                    "seconds": round(median(own), 2),
                    "to 1 x 2": round(ratio, 3),
                }
            )
    record = Record(f"python -m benchmarks.distributed {' '.join(sys.argv[1:])}".strip(), lines)
    print(f"{record.machine}, torch {torch.__version__}; medians of {options.rounds} round(s)\n")
    print("| what | processes x threads | seconds | over one process with two threads |\n|---|---|---|---|")
    for line in lines:
        print(f"| {line['what']} | {line['processes']} x {line['threads']} | {line['seconds']} | {line['to 1 x 2']} |")
    if options.json:
        record.write(options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--creatures", type=int, default=1000, help="pictures to learn and to test on (default 1000)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=500, help="of the graph (default 500)")
    parser.add_argument("--share", type=int, default=8, help="learn one of so many filters (default 8)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(options: argparse.Namespace, setting: Setting) -> dict[str, float]:
    """Start the processes of a setting and return what they measured."""
    launcher = [sys.executable]
    if setting.processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(setting.processes)]
    with tempfile.TemporaryDirectory() as folder:
        sizes = [f"--{name}={getattr(options, name)}" for name in ("creatures", "epochs", "pictures", "share")]
        subprocess.run(
            [*launcher, "-m", "benchmarks.distributed", f"--child={folder}", *sizes],
            env=os.environ | {"OMP_NUM_THREADS": str(setting.threads)},
            check=True,
        )
        found: dict[str, float] = json.loads((Path(folder) / "seconds.json").read_text())
        return found


def _measured(options: argparse.Namespace, ranks: Ranks) -> None:
    """Learn a network and a graph; the first process writes down how long it took."""
    drawn = creatures(options.creatures, size=SIZE)
    train, test = (Batches(drawn.of_split(split), SIZE) for split in ("train", "test"))
    job = Job.model_validate(
        {
            "name": "creatures",
            "output": options.child / str(ranks.number),
            "train": {"epochs": options.epochs},
            "head": {"decompose": False},
        }
    )
    _, _, history = learn(job, train, test, CLASSES, ranks=ranks)
    asked = made_up_job(options.pictures, options.share, torch.get_num_threads())
    source = MadeUp(options.pictures, options.share)
    ranks.told(None)
    began = time.perf_counter()
    learn_graph(asked, source, Workspace(options.child / "blocks"), ranks=ranks)
    # Every process makes all maps up, as no run on pictures does.
    graph = time.perf_counter() - began - source.seconds
    if ranks.first:
        found = {"epoch": history.seconds / options.epochs, "graph": graph}
        (options.child / "seconds.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
