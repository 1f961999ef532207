"""What every process of the tests' shared runs does; `test_ranks.py` starts it and looks at the files."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from analyzers import cli
from analyzers.graph_file import save_graph
from tests.conftest import ROOT
from tests.graph_oracles import Planted, plant, square_grid
from training.creatures import creatures
from training.data import Batches
from training.explanatory_graph import learn_graph
from training.feature_cache import Maps
from training.find_features import class_features
from training.graph_blocks import Workspace
from training.graph_job import GraphJob, GraphPlan, LayerPlan
from training.graph_maps import SharedMaps
from training.job import Job, read_job
from training.loop import learn
from training.ranks import Ranks, joined
from training.shared_norm import share_norms
from training.start import build
from training.tasks import answers
from training.whole_batch import whole

SIZE = 48
# 33 pictures in batches of 16, 16 and 1: shares of 8 and 8, and of 0 and 1.
OPTIONS = [
    *("--data.size=48", "--model.filters=8", "--model.interpretable_layers=layer2", "--model.beta=per-filter"),
    *("--train.epochs=7", "--train.batch_size=16", "--train.learning_rate=3e-5", "--train.threads=1"),
    *("--train.ema=0.5", "--train.filter_weight=0.2", "--head.epochs=1", "--head.learning_rate=1e-5"),
]
ONE_LAYER = "--model.interpretable_layers="
VARIANTS = {
    "code": ("--train.filter_loss=code",),
    "paper": ("--train.filter_loss=paper",),
    "mi": ("--train.filter_loss=mi",),
    "groups": ("--train.filter_loss=groups",),
    "gates": ("--train.filter_loss=gates", ONE_LAYER),
    "logistic": ("--train.loss=logistic", "--train.filter_classes=balanced", "--head.distil=1", "--head.train=head"),
    "without normalisation": ("--train.augment=crop", "--model.backbone=alexnet", "--data.size=64", ONE_LAYER),
}


def job(folder: Path, *overrides: str) -> Job:
    return read_job(ROOT / "examples" / "creatures.toml", [*OPTIONS, f"--output={folder}", *overrides])


def splits(size: int = SIZE) -> tuple[Batches, Batches]:
    drawn = creatures(44, size=size)
    return Batches(drawn.of_split("train"), size), Batches(drawn.of_split("test"), size)


def curve(folder: Path, ranks: Ranks, *overrides: str) -> None:
    """Learn, and write down what was learned; each process has an output folder of its own."""
    asked = job(folder / str(ranks.number), *overrides)
    network, selection, history = learn(asked, *splits(asked.data.size), 8, ranks=ranks)
    if ranks.first:
        state = {"network": network.state_dict(), "sets": selection.sets.tolist(), "epochs": history.epochs}
        torch.save(state, folder / "learned.pt")


def equal(folder: Path, ranks: Ranks) -> None:
    """Answers and class features of the same weights are the same bits, whoever computed which batch."""
    asked, (train, _) = job(folder), splits()
    torch.manual_seed(0)
    network = build(asked, 8).eval()
    assert np.array_equal(answers(network, train, 7), answers(network, train, 7, ranks))
    assert np.array_equal(class_features(network, asked, train).sets, class_features(network, asked, train, ranks).sets)
    assert ranks.gather(ranks.number) == list(range(ranks.count))
    assert list(ranks.in_turns("abcde", str.upper)) == list("ABCDE")


def exact(ranks: Ranks, count: int) -> None:
    """In float64, what normalised shares of a batch give, gradients and statistics, is what the batch gives."""
    torch.manual_seed(0)
    images, wanted = torch.randn(count, 3, 9, 9).double(), torch.randn(count, 6, 2, 2).double()
    plain = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 5, 3, 2), torch.nn.BatchNorm2d(5), torch.nn.ReLU()),
        *(torch.nn.Conv2d(5, 6, 3), torch.nn.BatchNorm2d(6)),
    ).double()
    shared = deepcopy(plain)
    share_norms(shared, torch.device("cpu"))

    def loss(maps: torch.Tensor) -> torch.Tensor:
        return (maps * wanted).sum() + maps.flatten(1).logsumexp(0).sum()  # couples the pictures

    loss(plain(images)).backward()
    loss(whole(shared(images[ranks.share(count)]), ranks, count)).backward()
    for one, other in zip(plain.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(torch.stack(ranks.gather(other.grad)).mean(0), one.grad, rtol=1e-9, atol=1e-9)
    for one, other in zip(plain.buffers(), shared.buffers(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


class Own:
    """The batches of planted maps that are one process's."""

    def __init__(self, planted: Planted, ranks: Ranks) -> None:
        self.planted, self.ranks, self.pictures = planted, ranks, planted.pictures

    def batches(self, tensors: list[str]) -> Iterator[Maps]:
        return islice(self.planted.batches(tensors), self.ranks.number, None, self.ranks.count)


def graph(folder: Path, ranks: Ranks) -> None:
    """Learn an explanatory graph with a cache that holds a part of the maps at a time."""
    planted = plant(0)
    layers = tuple(LayerPlan(f"m{k}", len(planted.maps[k]), square_grid((14, 28)[k]), (9, 12)[k]) for k in range(2))
    plan = GraphPlan(np.arange(planted.pictures), np.zeros(0, np.int64), (None, None))
    asked = GraphJob(layers=layers, graphs=(plan,), size=(224, 224), block=5, threads=1, memory_bytes=400_000)
    source = planted if ranks.count == 1 else SharedMaps(Own(planted, ranks), planted.pictures, ranks)
    learned = learn_graph(asked, source, Workspace(folder / "blocks"), ranks=ranks)
    if ranks.first:
        save_graph(learned, folder / "graph.npz")


class Dying(Batches):
    """Pictures of which the second process dies in the fourth epoch."""

    number = 0
    epochs = 0

    def shuffled(self, train, generator, ranks):  # noqa: ANN001, ANN201
        self.epochs += 1
        if self.epochs == 4 and ranks.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().shuffled(train, generator, ranks)


def killed(folder: Path, ranks: Ranks) -> None:
    train, test = splits()
    train.__class__ = Dying
    learn(job(folder), train, test, 8, ranks=ranks)


def main() -> int:
    what, folder = sys.argv[1], Path(sys.argv[2])

    def body() -> None:
        with joined() as ranks:
            if what == "everything":
                equal(folder, ranks)
                for count in (1, 2, 5, 8):
                    exact(ranks, count)
                graph(folder, ranks)
                curve(folder, ranks)
            elif what == "exact":
                for count in (1, 2, 5, 8):
                    exact(ranks, count)
            elif what == "variants":
                for name, options in VARIANTS.items():
                    curve(folder / name, ranks, "--train.epochs=1", *options)
            elif what == "bfloat16":
                curve(folder / what, ranks, "--train.precision=bfloat16")
            else:
                killed(folder, ranks)

    return cli.run("shared-run", body)


if __name__ == "__main__":
    sys.exit(main())
