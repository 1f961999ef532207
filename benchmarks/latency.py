"""What an explanation costs: explained against plain latency of the same network in ONNX Runtime on the CPU.

The files are run in turns within one process, one thread each; the table shows medians and their ratio. The
control is the plain file loaded a second time: its ratio shows how far noise alone moves the figure. Where a session's
weights come to lie in memory moves its time by a percent or two, so all of them are loaded anew several times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from analyzers.attach import Selection, attach
from analyzers.plain import Layer
from analyzers.progress import track
from analyzers.runtime import open_session, ort
from benchmarks.record import processor
from training.backbones import BACKBONES
from training.export import MAP, export
from training.network import Network

CLASSES, K = 10, 5


@dataclass(frozen=True, slots=True)
class Case:
    """A network to measure."""

    name: str
    backbone: str
    filters: int
    size: int
    rounds: int


CASES = (
    Case("ResNet-20", "resnet20", 0, 32, 600),
    Case("ResNet-18 + interpretable layer", "resnet18", 512, 128, 200),
    Case("ResNet-18 + interpretable layer", "resnet18", 512, 224, 100),
    Case("ResNet-18, stride 16, + interpretable layer", "resnet18-stride16", 512, 224, 60),
)
LOADS = 10
FIXED = "class_features.head"  # the final layer's weights, which a server fetches once


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: medians in ms of CPU time, ratios of medians to the plain file."""

    network: str
    size: int
    batch: int
    plain_ms: float
    explained_ms: float
    ratio: float
    ratio_wall: float
    control: float


def files(case: Case) -> tuple[bytes, bytes, bytes]:
    """Return the plain file, the explained one and the plain one again."""
    torch.manual_seed(0)
    network = Network(BACKBONES[case.backbone](), CLASSES, size=case.size, filters=case.filters)
    plain = export(network, tuple(f"class {c}" for c in range(CLASSES)), case.size)
    features = plain.found.head.weight.shape[1]
    sets = np.stack([np.random.default_rng(c).permutation(features)[:K] for c in range(CLASSES)])
    layer = Layer(tensor=MAP, interpretable=case.filters > 0)
    explained = attach(plain, Selection(sets, K, "contribution"), layer=layer)
    return plain.model.SerializeToString(), explained.SerializeToString(), plain.model.SerializeToString()


def measure(case: Case, batch: int, models: tuple[bytes, bytes, bytes]) -> Row:
    """Run the three files in turns, starting with another one each round, loaded anew `LOADS` times."""
    images = np.random.default_rng(0).random((batch, 3, case.size, case.size), np.float32)
    rounds = max(case.rounds // (1 if batch == 1 else 3), 15) // LOADS
    cpu, wall = np.zeros((LOADS * rounds, 3)), np.zeros((LOADS * rounds, 3))
    for number in track(range(LOADS * rounds), f"{case.name} at {case.size}, batch {batch}", LOADS * rounds):
        if number % rounds == 0:
            loaded = [open_session(model, threads=1) for model in models]
            names = [[name for name in session.outputs if name != FIXED] for session in loaded]
            for session, wanted in zip(loaded, names, strict=True):
                session.run({"image": images}, wanted)
        for turn in range(3):
            which = (number + turn) % 3
            cpu[number, which], wall[number, which] = _time(
                lambda s=loaded[which], wanted=names[which]: s.run({"image": images}, wanted)
            )
    plain, explained, again = np.median(cpu, axis=0)
    walls = np.median(wall, axis=0)
    return Row(
        case.name,
        case.size,
        batch,
        round(plain * 1e3, 3),
        round(explained * 1e3, 3),
        round(explained / plain, 4),
        round(walls[1] / walls[0], 4),
        round(again / plain, 4),
    )


def _time(run: Callable[[], object]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Measure all cases and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--only", help="only networks whose name contains this")
    options = parser.parse_args()
    print(f"{processor()}, ONNX Runtime {ort.__version__}, CPU, one thread; medians of CPU time\n")
    print("| network | input | batch | plain ms | explained ms | explained / plain | by wall clock | plain / plain |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for case in CASES:
        if options.only and options.only not in case.name:
            continue
        models = files(case)
        for batch in (1, 8):
            row = measure(case, batch, models)
            rows.append(row)
            print("| " + " | ".join(str(value) for value in asdict(row).values()) + " |", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
