"""Put another final layer into a classifier's graph, such as a decomposed one; everything before it stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from analyzers.class_features import Head
from analyzers.errors import ModelError
from analyzers.graph import Graph, ancestors
from analyzers.plain import TOLERANCE, Plain, probe


def replace_head(plain: Plain, head: Head) -> Plain:
    """Return the classifier with another final layer on the same features; its outputs keep their names.

    Args:
        plain: the classifier.
        head: as many classes and features.

    Raises:
        ModelError: the layer does not fit, or the graph is inconsistent afterwards.
    """
    if head.weight.shape != plain.found.head.weight.shape:
        raise ModelError(
            f"a layer of {list(head.weight.shape)} does not fit one of {list(plain.found.head.weight.shape)}"
        )
    model = ModelProto()
    model.CopyFrom(plain.model)
    logits, old = plain.found.logits, "pellucid.full_logits"
    for node in model.graph.node:
        if logits in node.output:
            node.output[:] = [old if name == logits else name for name in node.output]
    numbers = {"pellucid.head_weight": head.weight, "pellucid.head_bias": head.bias}
    for name, array in numbers.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    gemm = helper.make_node("Gemm", [plain.found.pooled, *numbers], [logits], name="pellucid.head", transB=1)
    model.graph.node.append(gemm)
    _sort(model)
    _prune(model)
    del model.graph.value_info[:]
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx raises unrelated classes
        raise ModelError(f"the graph is inconsistent with another final layer: {str(error)[:300]}") from None
    changed = replace(plain, model=model, found=replace(plain.found, head=head))
    _check(plain, changed)
    return changed


def _sort(model: ModelProto) -> None:
    """Bring the nodes into an order in which every tensor is made before it is read, as close to theirs as can be."""
    made = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer} | {""}
    waiting, ordered = list(model.graph.node), list[NodeProto]()
    while waiting:
        later = []
        for node in waiting:
            if all(name in made for name in node.input):
                ordered.append(node)
                made.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ModelError("the graph reads its own scores before the final layer; its layer cannot be replaced")
        waiting = later
    copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _prune(model: ModelProto) -> None:
    """Remove what no output depends on any more, and the numbers that only it read."""
    needed = [output.name for output in model.graph.output]
    kept = [NodeProto.FromString(node.SerializeToString()) for node in ancestors(Graph(model), *needed)]
    read = {name for node in kept for name in node.input} | set(needed)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
        model.graph.initializer.remove(tensor)


def _check(plain: Plain, changed: Plain) -> None:
    """Hold the new logits against the layer on the old features.

    Raises:
        ModelError: they differ.
    """
    size = plain.manifest.input
    images = np.random.default_rng(0).random((2, 3, size.height, size.width), np.float32)
    pooled = probe(plain)[0].run_images(plain.manifest, images)[plain.found.pooled]
    logits = probe(changed)[0].run_images(changed.manifest, images)[changed.found.logits]
    expected = pooled @ changed.found.head.weight.T + changed.found.head.bias
    if not abs(logits - expected).max() <= TOLERANCE * max(1.0, float(abs(expected).max())):
        raise ModelError("the new final layer does not give its own logits; this is a defect, please report it")
