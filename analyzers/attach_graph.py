"""Attach an explanatory graph to a model file, plain or explained: more outputs, all others as they were."""

from __future__ import annotations

import base64
import binascii
import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, helper

from analyzers.baseline import forget_nodes
from analyzers.conv_maps import open_maps
from analyzers.errors import ModelError
from analyzers.explanatory_graph import QUANTILES, ExplanatoryGraph, GraphLayer
from analyzers.fingerprint import maps_fingerprint
from analyzers.graph_file import graph_from_bytes, graph_to_bytes
from analyzers.graph_inference import ROW, Form, append_inference
from analyzers.graph_look import look
from analyzers.graph_prune import best_nodes, prune
from analyzers.manifest import METADATA_KEY, Manifest
from analyzers.manifest import ExplanatoryGraph as ExplanatoryGraphSection
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.plain import TOLERANCE, load_onnx, manifest_of, set_manifest
from analyzers.probe import record
from analyzers.progress import track
from analyzers.runtime import open_session

NODES, NODES_OF_A_CLASS = 200, 50  # reported of each layer: of one graph for all, of each class's
GRAPH_KEY = "pellucid.explanatory_graph"
_TIES = 0.005  # share of nodes that may lie elsewhere: cells that score alike but for rounding
_GAP = 1e-3

Float32Array = npt.NDArray[np.float32]


def attach_graph(
    model: ModelProto, graph: ExplanatoryGraph, *, nodes: int | None = None, form: Form = "hard"
) -> ModelProto:
    """Return the model with the graph's best nodes, and all that they depend on, as further outputs.

    What it computes for them is exactly what the whole graph would; `graph_inference` says what. A graph that is there
    already is replaced.

    Args:
        model: with a manifest.
        graph: learned from this model's maps.
        nodes: how many of each layer are reported, of each class's graph if there are several; parents come along.
        form: hard or soft.

    Raises:
        ModelError: the graph was learned from another model or for other classes, or its layers are not here.
    """
    if nodes is not None and nodes < 1:
        raise ModelError(f"{nodes} nodes of each layer cannot be reported; expected 1 or more")
    known = manifest_of(model)
    _check(model, graph, known)
    model = without_graph(model)
    most = nodes or (NODES_OF_A_CLASS if graph.classes else NODES)
    small, numbers = prune(graph, [best_nodes(layer, most) for layer in graph.layers])
    small = replace(small, layers=tuple(map(_without_pictures, small.layers)))
    return _attached(model, small, numbers, form)


def _attached(
    model: ModelProto, graph: ExplanatoryGraph, numbers: Sequence[Sequence[npt.NDArray[np.int64]]], form: Form
) -> ModelProto:
    known = manifest_of(model)
    logits, size = known.scores.tensor, (known.input.height, known.input.width)
    section = append_inference(model, graph, numbers, logits, size, form)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, metadata | {GRAPH_KEY: base64.b64encode(graph_to_bytes(graph)).decode()})
    explained = known.model_copy(update={"explanatory_graph": section})
    set_manifest(model, explained)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx raises unrelated classes
        raise ModelError(f"the explained graph is inconsistent: {str(error)[:300]}") from None
    record(model, open_session(model.SerializeToString()), explained)
    return model


def without_graph(model: ModelProto) -> ModelProto:
    """Return a copy of the model without the explanatory graph, if it has one."""
    bare = ModelProto()
    bare.CopyFrom(model)
    fields: list[Any] = [bare.graph.node, bare.graph.initializer, bare.graph.output]
    for field in fields:
        kept = [element for element in field if not element.name.startswith((f"{ROW}/", f"{ROW}."))]
        del field[:]
        field.extend(kept)
    forget_nodes(bare)
    return bare


def attached_graph(model: ModelProto) -> ExplanatoryGraph | None:
    """Return the part of the learned graph that the model computes; None where it has none.

    Raises:
        ModelError: what the file says of it is damaged.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == GRAPH_KEY), None)
    if text is None:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ModelError(f"the metadata '{GRAPH_KEY}' is damaged; attach the graph anew") from None
    return graph_from_bytes(data, Path(GRAPH_KEY))


def describe_file(data: bytes) -> Manifest | None:
    """Return the manifest of an ONNX file; None where it has none.

    Raises:
        ModelError: it is not ONNX, or its manifest is wrong.
    """
    metadata = {entry.key: entry.value for entry in load_onnx(data).metadata_props}
    return Manifest.from_metadata(metadata) if METADATA_KEY in metadata else None


def calibrate(model: ModelProto, pictures: Pictures) -> ModelProto:
    """Return the model with thresholds and quantiles of its own scores, in place of those of the learned graph.

    As in learning, a node's threshold is the 5 % quantile; nodes of a class's graph are calibrated on the pictures that
    the model takes for that class and that are of it. Nodes without enough of them keep what they had.

    Args:
        model: with a graph.
        pictures: of the model's classes.
    """
    known = manifest_of(model)
    graph, section = attached_graph(model), known.explanatory_graph
    if graph is None or section is None:
        raise ModelError("the file has no explanatory graph, so there is nothing to calibrate")
    session, size, step = open_session(model.SerializeToString()), known.input, 32
    scores: list[list[Float32Array]] = [[] for _ in section.layers]
    whose = []
    batches = track(pictures.batches(size.height, size.width, step), "calibrating", -(-len(pictures) // step))
    for pixels in batches:
        answer = session.run_images(known, to_model_input(pixels))
        whose.append(np.zeros(len(pixels), np.int64) if section.graph is None else answer[section.graph])
        for place, layer in enumerate(section.layers):
            scores[place].append(answer[layer.score])
    chosen = np.concatenate(whose)
    counts = np.ones(len(chosen), np.bool_) if section.graph is None else chosen == pictures.label
    layers = []
    for learned, found in zip(graph.layers, scores, strict=True):
        all_scores, quantiles, threshold = np.concatenate(found), learned.quantiles.copy(), learned.threshold.copy()
        for number in range(len(learned.filter)):
            own = all_scores[counts & (chosen == number)]
            if len(own) >= QUANTILES:
                quantiles[number] = np.quantile(own, np.linspace(0, 1, QUANTILES), axis=0).T
                threshold[number] = quantiles[number, :, 1]
        layers.append(replace(learned, quantiles=quantiles, threshold=threshold))
    return _attached(without_graph(model), replace(graph, layers=tuple(layers)), _numbers(section), section.form)


def _numbers(section: ExplanatoryGraphSection) -> list[list[npt.NDArray[np.int64]]]:
    return [[np.array([n for n in own if n >= 0], np.int64) for own in layer.node] for layer in section.layers]


def prove_graph(before: ModelProto, after: ModelProto, images: Float32Array) -> float:
    """Run the model with and without its graph, find the nodes anew in numpy, return the largest difference of scores.

    Args:
        before: the model without the graph.
        after: with it.
        images: (pictures, 3, height, width) as the model takes them.

    Raises:
        ModelError: another output changed, or nodes of the hard form are elsewhere or score otherwise.
    """
    described = manifest_of(after)
    graph, section = attached_graph(after), described.explanatory_graph
    if graph is None or section is None:
        raise ModelError("the file has no explanatory graph, so there is nothing to prove")
    session = open_session(after.SerializeToString())
    answer = session.run({described.input.tensor: images})
    for name, value in open_session(before.SerializeToString()).run({described.input.tensor: images}).items():
        if not np.allclose(value, answer[name], rtol=TOLERANCE, atol=TOLERANCE):
            raise ModelError(f"attaching the graph changed the output '{name}'; nothing was written")
    for name in (name for layer in section.layers for name in (layer.position, layer.score, layer.percentile)):
        if not np.isfinite(answer[name]).all():
            raise ModelError(f"the output '{name}' holds numbers that are not finite; nothing was written")
    if section.form != "hard":
        return 0.0
    maps = open_maps(before, [layer.tensor for layer in graph.layers]).run({described.input.tensor: images})
    whose = np.zeros(len(images), np.int64) if section.graph is None else answer[section.graph]
    size, gap, moved, count = (described.input.height, described.input.width), 0.0, 0, 0
    for number in np.unique(whose):
        rows = np.flatnonzero(whose == number)
        found = look(graph, {name: values[rows] for name, values in maps.items()}, size, number=int(number))
        for layer, learned, truth in zip(section.layers, graph.layers, found, strict=True):
            real = np.flatnonzero(learned.filter[number] >= 0)
            away = abs(answer[layer.position][rows][:, real] - truth.position[:, real]).max(-1)
            apart = abs(answer[layer.score][rows][:, real] - truth.score[:, real])
            wrong = (away > _GAP) | (apart > _GAP)
            moved, count = moved + int(wrong.sum()), count + wrong.size
            gap = max(gap, float(apart[~wrong].max(initial=0.0)))
    if moved > _TIES * count:
        raise ModelError(f"{moved} of {count} nodes are not where numpy finds them; nothing was written")
    return gap


def _check(model: ModelProto, graph: ExplanatoryGraph, known: Manifest) -> None:
    tensors = [layer.tensor for layer in graph.layers]
    made = [name for node in model.graph.node for name in node.output]
    for name in tensors:
        if name not in made:
            nearest = ", ".join(difflib.get_close_matches(name, made, n=3, cutoff=0)) or "none"
            raise ModelError(f"the graph's layer '{name}' is not in the model; the nearest names are {nearest}")
    if maps_fingerprint(model, tensors) != graph.model:
        raise ModelError(
            "the graph was learned from another model: the weights or operators before its layers differ;"
            " learn one from this file with `pellucid-train graph`"
        )
    if graph.classes and graph.classes != known.classes:
        strange = sorted(set(graph.classes) ^ set(known.classes))[:5]
        raise ModelError(
            f"the graph has classes that the model has not, or in another order: {', '.join(strange) or 'the order'}"
        )


def _without_pictures(layer: GraphLayer) -> GraphLayer:
    graphs, nodes = layer.filter.shape
    return replace(
        layer,
        top_picture=np.zeros((graphs, nodes, 0), np.int64),
        top_score=np.zeros((graphs, nodes, 0), np.float32),
        top_position=np.zeros((graphs, nodes, 0, 2), np.float32),
    )
