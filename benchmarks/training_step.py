"""What an interpretable layer costs while learning: one step with mask and filter loss against an ordinary step.

Both networks have the same layers; they take turns in one process, and the table shows medians and their ratio. The
control is a second ordinary network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from analyzers.progress import track
from benchmarks.latency import processor
from training.backbones import BACKBONES
from training.filter_losses import FILTER_LOSSES
from training.network import Network

CLASSES, BATCH, WEIGHT = 20, 16, 0.1
CASES = (("small", 128, 96, 40), ("resnet18", 512, 128, 20))


def step(network: Network, filter_loss: str | None, images: torch.Tensor, label: torch.Tensor) -> Callable[[], None]:
    """Return a training step."""
    optimiser = torch.optim.AdamW(network.parameters())
    network.train()

    def run() -> None:
        logits, maps = network(images)
        loss = F.cross_entropy(logits, label)
        if filter_loss is not None and network.parts is not None:
            network.parts.state.observe(maps.detach(), label)
            loss = loss + WEIGHT * FILTER_LOSSES[filter_loss](maps, logits, label, network.parts.state)[0]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return run


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", nargs="+", default=["plain"], choices=sorted(set(FILTER_LOSSES) - {"gates"}))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, torch {torch.__version__}, CPU, one thread, batch {BATCH}; medians of CPU time\n")
    print("| network | input | filter loss | ordinary ms | interpretable ms | ratio | ordinary / ordinary |")
    print("|---|---|---|---|---|---|---|")
    for backbone, filters, size, rounds in CASES:
        images, label = torch.rand(BATCH, 3, size, size), torch.randint(0, CLASSES, (BATCH,))
        for name in options.losses:
            kinds = ((False, None), (True, name), (False, None))
            networks = [
                Network(BACKBONES[backbone](), CLASSES, size=size, filters=filters, masked=masked)
                for masked, _ in kinds
            ]
            steps = [step(n, loss, images, label) for n, (_, loss) in zip(networks, kinds, strict=True)]
            plain, other, again = measure(steps, rounds, f"{backbone} at {size}, {name}") * 1e3
            print(
                f"| {backbone} + {filters} filters | {size} | {name} | {plain:.1f} | {other:.1f} | {other / plain:.3f}"
                f" | {again / plain:.3f} |",
                flush=True,
            )


def measure(steps: list[Callable[[], None]], rounds: int, title: str) -> np.ndarray:
    """Run the steps in turns, starting with another one each round; return their median CPU times in seconds."""
    times = np.zeros((rounds, len(steps)))
    for run in steps:
        run()
    for number in track(range(rounds), title, rounds):
        for turn in range(len(steps)):
            which = (number + turn) % len(steps)
            began = time.process_time()
            steps[which]()
            times[number, which] = time.process_time() - began
    return np.median(times, axis=0)


if __name__ == "__main__":
    main()
