"""What an explanatory graph costs in a model file: explained against plain latency, as in `benchmarks/latency.py`.

Networks and graphs have random numbers; a layer has as many nodes a filter as a learned graph, each with 15 parents of
the 600 best nodes above. Of each layer 200 nodes are reported and whatever they depend on is computed.
"""

from __future__ import annotations

import argparse
from dataclasses import astuple

import numpy as np
import torch
from onnx import ModelProto

from analyzers.attach_graph import attach_graph, attached_graph
from analyzers.conv_maps import ConvMap, default_maps, find_conv_maps
from analyzers.explanatory_graph import ExplanatoryGraph, GraphLayer, Root
from analyzers.fingerprint import maps_fingerprint
from analyzers.graph_inference import Form
from analyzers.runtime import ort
from benchmarks.latency import CLASSES, Case, measure, processor
from training.backbones import BACKBONES
from training.export import export
from training.network import Network

CASES = (Case("ResNet-18", "resnet18", 0, 224, 150), Case("VGG-16", "vgg16", 0, 224, 40))
REPORTED, CANDIDATES, PARENTS = 200, 600, 15


def random_layer(random: np.random.Generator, found: ConvMap, above: GraphLayer | None) -> GraphLayer:
    """Return a layer with 1.4 times the square root of the number of cells as nodes a filter."""
    each = round(1.4 * (found.grid.cells[0] * found.grid.cells[1]) ** 0.5)
    shape = (1, found.filters * each)
    rank = random.random(shape, np.float32)
    parents = np.zeros((*shape, 0), np.int64)
    if above is not None:
        best = np.argsort(-above.rank[0])[:CANDIDATES]
        parents = best[random.random((*shape, len(best)), np.float32).argsort(-1)[..., :PARENTS]]
    return GraphLayer(
        tensor=found.tensor,
        grid=found.grid,
        scale=np.full(found.filters, 0.5, np.float32),
        floor=np.full(found.filters, 0.1, np.float32),
        filter=np.repeat(np.arange(found.filters), each)[None],
        prior=random.random((*shape, 2), np.float32),
        mean=random.random((*shape, 2), np.float32),
        sigma=np.full(shape, 0.15, np.float32),
        spread=np.full(shape, 0.15, np.float32),
        parents=parents,
        threshold=np.full(shape, -10, np.float32),
        quantiles=np.sort(random.normal(-3, 2, (*shape, 21)), 2).astype(np.float32),
        rank=rank,
        top_picture=np.zeros((*shape, 0), np.int64),
        top_score=np.zeros((*shape, 0), np.float32),
        top_position=np.zeros((*shape, 0, 2), np.float32),
    )


def graph_of(model: ModelProto, maps: tuple[ConvMap, ...], rooted: bool) -> ExplanatoryGraph:
    """Return a random graph of a model."""
    random, layers = np.random.default_rng(0), []
    for found in maps:
        layers.append(random_layer(random, found, layers[-1] if layers else None))
    root = None
    if rooted:
        steps = np.linspace(-0.3, 0.3, 13)
        table = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
        voters = np.argsort(-layers[0].rank[0])[None, :60]
        root = Root(voters, table, np.zeros((1, 2), np.float32), 0.06, mirrored=True)
    fingerprint = maps_fingerprint(model, [found.tensor for found in maps])
    return ExplanatoryGraph(tuple(layers), root, (), fingerprint, "", 1)


def main() -> None:
    """Measure all cases and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="only networks whose name contains this")
    options = parser.parse_args()
    print(f"{processor()}, ONNX Runtime {ort.__version__}, CPU, one thread; medians of CPU time\n")
    columns = ("network", "input", "batch", "plain ms", "with graph ms", "ratio", "by wall clock", "plain / plain")
    print(f"| form | root | nodes | {' | '.join(columns)} |")
    print("|---" * 11 + "|")
    for case in CASES:
        if options.only and options.only not in case.name:
            continue
        torch.manual_seed(0)
        network = Network(BACKBONES[case.backbone](), CLASSES, size=case.size, filters=case.filters)
        plain = export(network, tuple(f"class {c}" for c in range(CLASSES)), case.size)
        maps = default_maps(find_conv_maps(plain.model, plain.manifest.input))
        forms: tuple[Form, ...] = ("soft", "hard")
        for form in forms:
            for rooted in (False, True):
                explained = attach_graph(plain.model, graph_of(plain.model, maps, rooted), nodes=REPORTED, form=form)
                kept = attached_graph(explained)
                nodes = "+".join(str(layer.filter.shape[1]) for layer in kept.layers) if kept else ""
                bare = plain.model.SerializeToString()
                row = measure(case, 1, (bare, explained.SerializeToString(), bare))
                print(
                    f"| {form} | {'yes' if rooted else 'no'} | {nodes} | {' | '.join(map(str, astuple(row)))} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
