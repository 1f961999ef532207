"""Class features against learned class-specific gates (CSG, arXiv 2007.08194), on networks from the same checkpoint.

One network goes on learning with gates, one without, alike in all else. In both, class features are found by each
rule; in the gated one the gates name k filters a class as well. Decomposed accuracy without retraining, overlap, and
what becomes of a class when its features are replaced by their mean, beside as many others by lot.

    python -m benchmarks.class_gates --data cifar10-lossless.npz --weights resnet20-12fca82f.safetensors
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from analyzers.class_features import Head, Histogram, Int64Array
from analyzers.decompose import decompose
from analyzers.disentangle import ablation, concentration, overlap
from analyzers.feature_table import FeatureTable
from analyzers.manifest import Rule
from analyzers.read_pictures import read_pictures
from training.data import Batches
from training.job import read_job
from training.loop import learn
from training.network import Network

RULES: tuple[Rule, ...] = ("feature", "contribution", "weight")
EXAMPLE = Path(__file__).parent.parent / "examples" / "cifar10.toml"


def table(network: Network, batches: Batches) -> FeatureTable:
    """Return the features of all pictures."""
    network.eval()
    with torch.no_grad():
        pooled = [network.pooled(network.map(images)).numpy() for images, _ in batches.ordered(64)]
    return FeatureTable(np.concatenate(pooled), batches.label.numpy())


def line(name: str, head: Head, sets: Int64Array, test: FeatureTable, mean: np.ndarray) -> str:
    """Return the table's line of one choice of features."""
    own, removed = overlap(head, sets), ablation(test, head, sets, mean)["mean"]
    figures = [
        f"{sets.shape[1]}",
        f"{100 * test.accuracy(decompose(head, sets)):.1f}",
        f"{own['jaccard']:.3f}",
        f"{own['union']}",
        f"{own['mutual_information_with_self']:.4f}",
        f"{100 * removed['removed']['value']:.1f}",
        f"{100 * removed['random']['value']:.1f}",
    ]
    return f"| {name} | {' | '.join(figures)} |"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--k", default="5,10,20")
    options = parser.parse_args()
    pictures = read_pictures(options.data)
    splits = [Batches(pictures.of_split(split), 32) for split in ("train", "test")]
    print("| network, features | k | accuracy | Jaccard | union | mutual information | removed | random removed |")
    print("|---|---|---|---|---|---|---|---|")
    for name, weight in (("without gates", 0.0), ("gates", 1.0)):
        with tempfile.TemporaryDirectory() as folder:
            changes = [f"--data.path={options.data}", f"--model.weights={options.weights}", f"--output={folder}"]
            changes += ["--model.keep_head=false", "--model.filters=64", "--model.mask=false"]
            changes += ["--model.interpretable=true"]  # a last conv layer of 64 filters, for gates to be learned on
            changes += ["--train.filter_loss=gates", f"--train.filter_weight={weight}", "--train.learning_rate=1e-3"]
            changes += [
                "--train.filter_schedule=constant",
                f"--train.epochs={options.epochs}",
                "--head.decompose=false",
            ]
            network, _, _ = learn(read_job(EXAMPLE, changes), *splits, len(pictures.names))
        head, (train, test) = network.head.head(), (table(network, split) for split in splits)
        mean, shape = train.pooled.mean(0), concentration(train, head, 5)
        print(f"| **{name}**, all features | {len(mean)} | {100 * test.accuracy(head):.1f} | | | | | |")
        print(f"| {name}: psi {shape['psi']:.3f}, mu {shape['mu']:.3f} | | | | | | | |")
        for k in map(int, options.k.split(",")):
            for rule in RULES:
                histogram = Histogram(head, k, rule)
                histogram.add(train.pooled, train.label)
                print(line(f"{name}, {rule}", head, histogram.index_sets(k), test, mean))
            if weight:
                gate = network.states[-1].gate.detach().numpy().T
                order = np.argsort(-gate, axis=1, kind="stable")
                print(line("gates, largest gates", head, order[:, :k], test, mean))
                print(line("gates, smallest gates", head, order[:, ::-1][:, :k], test, mean), flush=True)


if __name__ == "__main__":
    main()
