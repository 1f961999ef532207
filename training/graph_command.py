"""`pellucid-train graph`: learn an explanatory graph of any ONNX model on pictures."""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto, numpy_helper

from analyzers import preprocessing
from analyzers.conv_maps import ConvMap, default_maps, find_conv_maps, named_maps, read_network
from analyzers.errors import DataError
from analyzers.explanatory_graph import ExplanatoryGraph
from analyzers.fingerprint import maps_fingerprint
from analyzers.graph_file import save_graph
from analyzers.manifest import METADATA_KEY, Manifest
from analyzers.pictures import Pictures
from analyzers.plain import read_onnx
from analyzers.read_pictures import read_pictures
from training.explanatory_graph import learn_graph
from training.graph_blocks import Workspace
from training.graph_filter import Rule
from training.graph_job import GraphJob, GraphPlan, LayerPlan
from training.graph_maps import onnx_maps
from training.ranks import Ranks, joined

GOING_ON = "the same command with --resume goes on after the last whole block of filters"
MAX_REFERENCE = 200
NODES = 1.4  # nodes of a filter, times the square root of its cells; 40, 20 and 10 for 28, 14 and 7 cells a side


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    command.add_argument("model", type=Path, metavar="MODEL.onnx", help="any ONNX network of pictures")
    command.add_argument("--data", type=Path, required=True, metavar="DIR|PACK", help="pictures to learn from")
    command.add_argument("--split", default="train", help="which of them: train, test, all (default train)")
    command.add_argument(
        "--layers",
        type=_words,
        metavar="NAME,NAME,NAME",
        help="conv maps, top layer first (default: three sensible ones)",
    )
    command.add_argument("--nodes", type=_numbers, metavar="N,N,N", help="nodes of a filter, one number a layer")
    framing = command.add_mutually_exclusive_group()
    framing.add_argument("--cropped", action="store_true", help="pictures are cropped to the object: no root vote")
    framing.add_argument("--uncropped", action="store_true", help="objects may be anywhere (default)")
    command.add_argument("--no-mirror", action="store_true", help="the root does not try the mirrored layout")
    command.add_argument("--per-class", action="store_true", help="a graph for each class, not one for all")
    command.add_argument(
        "--reference", type=Path, metavar="DIR|PACK", help="pictures without the objects, to calibrate presence on"
    )
    command.add_argument(
        "--memory", type=float, default=2.0, metavar="GB", help="size of the feature cache (default 2)"
    )
    command.add_argument("--iterations", type=int, default=8, help="rounds of EM (default 8)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="where to compute")
    preprocessing.add_arguments(command)
    command.add_argument("--resume", action="store_true", help="go on where an interrupted run of this command stopped")
    command.add_argument("--output", type=Path, default=Path("graph.npz"), metavar="graph.npz")


def run(options: argparse.Namespace) -> None:
    """Learn part patterns of several conv layers and how they hang together, without any labels of parts."""
    started = time.perf_counter()
    with joined() as ranks:
        graph = _learned(options, ranks)
        if ranks.first:
            save_graph(graph, options.output)
        ranks.told(None)  # blocks stay until the graph is written
        _workspace(options).remove()
    if ranks.first:
        print(_summary(graph, options.output, time.perf_counter() - started))


def _workspace(options: argparse.Namespace) -> Workspace:
    return Workspace(options.output.with_name(f".{options.output.name}.blocks"))


def _learned(options: argparse.Namespace, ranks: Ranks) -> ExplanatoryGraph:
    """Learn the graph that the options ask for."""
    if not 0 < options.memory < math.inf or options.iterations < 1 or options.seed < 0:
        raise DataError("--memory and --iterations take numbers above 0, --seed a whole number from 0 on")
    data = read_onnx(options.model)
    model, picture = read_network(data, preprocessing.read_arguments(options))
    maps = find_conv_maps(model, picture)
    if options.layers is None:
        chosen = default_maps(maps)
        _tell(maps, chosen, ranks)
    else:
        chosen = named_maps(maps, options.layers)
    pictures, classes, sets = _of_classes(model, read_pictures(options.data), options.per_class)
    pictures = pictures.of_split(options.split)
    own = np.arange(len(pictures))
    shown = pictures if options.reference is None else _joined(pictures, read_pictures(options.reference))
    device = _device(options.device)
    job = GraphJob(
        layers=_plans(chosen, options.nodes),
        graphs=_graphs(pictures, len(shown), chosen, sets) if options.per_class else (_one(own, len(shown), chosen),),
        size=(picture.height, picture.width),
        classes=classes,
        model=maps_fingerprint(model, [one.tensor for one in chosen]),
        data=shown.fingerprint(),
        rooted=not options.cropped,
        mirrored=not options.no_mirror,
        rule=Rule(iterations=options.iterations)
        if device == "cpu"
        else Rule(iterations=options.iterations, chunk=100_000_000),
        seed=options.seed,
        memory_bytes=int(options.memory * 1e9),
        device=device,
        settings={"data": options.data.name, "split": options.split},
    )
    source = onnx_maps(model, picture, shown, "gpu" if device == "cuda" and options.device == "gpu" else "cpu", ranks)
    return learn_graph(job, source, _workspace(options), resume=options.resume, ranks=ranks)


def _tell(maps: Sequence[ConvMap], chosen: Sequence[ConvMap], ranks: Ranks) -> None:
    if ranks.first:
        print("conv maps of the model; * are taken, choose others with --layers:")
        for one in maps:
            print(f"  {'*' if one in chosen else ' '} {one}")


def _plans(chosen: Sequence[ConvMap], nodes: Sequence[int] | None) -> tuple[LayerPlan, ...]:
    if nodes is not None and len(nodes) != len(chosen):
        raise DataError(f"--nodes has {len(nodes)} numbers for {len(chosen)} layers; give one a layer")
    counts = nodes or [math.ceil(NODES * math.sqrt(math.prod(one.grid.cells))) for one in chosen]
    return tuple(LayerPlan(one.tensor, one.filters, one.grid, n) for one, n in zip(chosen, counts, strict=True))


def _of_classes(
    model: ModelProto, pictures: Pictures, per_class: bool
) -> tuple[Pictures, tuple[str, ...], dict[str, np.ndarray]]:
    """Return the pictures with the model's labels, the classes, and by layer each class's own filters, if known."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if not per_class:
        return pictures, (), {}
    if METADATA_KEY not in metadata:
        return pictures, pictures.names, {}
    known = Manifest.from_metadata(metadata)
    pictures, features, parts = pictures.relabelled(known.classes), known.class_features, known.parts
    if features is None or parts is None or not features.features_are_filters:
        return pictures, known.classes, {}
    index = next((t for t in model.graph.initializer if t.name == "class_features/index"), None)
    return pictures, known.classes, {} if index is None else {parts.layer: numpy_helper.to_array(index)[:, :, 0]}


def _one(own: np.ndarray, shown: int, chosen: Sequence[ConvMap]) -> GraphPlan:
    return GraphPlan(own, np.arange(len(own), shown), tuple(None for _ in chosen))


def _graphs(
    pictures: Pictures, shown: int, chosen: Sequence[ConvMap], sets: dict[str, np.ndarray]
) -> tuple[GraphPlan, ...]:
    """Return a graph a class; the other classes' pictures and those of reference calibrate it."""
    plans = []
    for number in range(len(pictures.names)):
        others = np.concatenate([np.flatnonzero(pictures.label != number), np.arange(len(pictures), shown)])
        picked = np.unique(np.linspace(0, max(0, len(others) - 1), min(len(others), MAX_REFERENCE)).round().astype(int))
        filters = [sets[one.tensor][number] if one.tensor in sets else None for one in chosen]
        plans.append(
            GraphPlan(
                np.flatnonzero(pictures.label == number),
                others[picked],
                tuple(None if f is None else tuple(sorted(int(d) for d in f if d >= 0)) for f in filters),
            )
        )
    return tuple(plans)


def _joined(pictures: Pictures, reference: Pictures) -> Pictures:
    """Return pictures with those of reference behind them; the latter's labels mean nothing."""
    return replace(
        pictures,
        encoded=(*pictures.encoded, *reference.encoded),
        label=np.concatenate([pictures.label, np.full(len(reference), -1)]),
        split=np.concatenate([pictures.split, reference.split]),
        group=np.concatenate([pictures.group, np.full(len(reference), -1)]),
        parts=None,
    )


def _device(wanted: str) -> str:
    if wanted == "gpu" and not torch.cuda.is_available():
        raise DataError("the GPU was asked for and torch finds none; use --device cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _summary(graph: ExplanatoryGraph, output: Path, seconds: float) -> str:
    nodes = ", ".join(f"{int((layer.filter >= 0).sum())} of '{layer.tensor}'" for layer in graph.layers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # Linux counts in KB
    dead = graph.settings["dead_filters"]
    left_out = f", {dead} dead filters left out" if dead else ""
    return (
        f"{output}: nodes {nodes}{left_out}; learned from {graph.pictures} pictures in {seconds:.0f} s,"
        f" cache {float(graph.settings['cache_bytes']) / 1e9:.2f} GB in {graph.settings['passes']} passes,"
        f" peak memory {peak:.2f} GB"
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not whole numbers N,N,N") from None
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': a filter has at least one node")
    return numbers
