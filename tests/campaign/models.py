"""Models for scenarios: the tiny one with other weights, made slow, or as heavy as a ResNet-18."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import onnx
from onnx import helper, numpy_helper

from analyzers.attach import attach, fit
from analyzers.plain import Layer, read_plain
from tests.conftest import NAMES, explain_tiny

HEAVY_SIZE = 128
CHANNELS = 64


@cache
def tiny(seed: int = 0) -> bytes:
    """Return the tiny explained model with weights from a seed."""
    return explain_tiny(seed)[2].SerializeToString(deterministic=True)


def numbered(model: bytes, number: int) -> bytes:
    """Return another file of the same model: the same answers, other bytes."""
    copy = onnx.load_from_string(model)
    helper.set_model_props(copy, {one.key: one.value for one in copy.metadata_props} | {"campaign": str(number)})
    return copy.SerializeToString(deterministic=True)


@cache
def slowed(products: int, size: int = 512) -> bytes:
    """Return the tiny explained model with as many products of size x size matrices before its first layer.

    They depend on the picture, so that nothing folds them away, and add exactly 0 to it: answers stay the same.
    Each takes size^3 multiply-adds; a run takes as long whatever the batch.
    """
    model = onnx.load_from_string(tiny())
    graph = model.graph
    random = np.random.default_rng(3)
    matrix = (random.normal(size=(size, size)) / np.sqrt(size)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(matrix, "slow.matrix"))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "slow.zero"))
    (image,) = (one.name for one in graph.input)
    for node in graph.node:
        node.input[:] = ["slow.image" if name == image else name for name in node.input]
    nodes = [
        helper.make_node("ReduceMean", [image], ["slow.mean"], keepdims=0),
        helper.make_node("Add", ["slow.matrix", "slow.mean"], ["slow.0"]),
    ]
    names = [f"slow.{number}" for number in range(products + 1)]
    nodes += [helper.make_node("MatMul", [a, "slow.matrix"], [b]) for a, b in itertools.pairwise(names)]
    nodes += [
        helper.make_node("ReduceMean", [f"slow.{products}"], ["slow.end"], keepdims=0),
        helper.make_node("Mul", ["slow.end", "slow.zero"], ["slow.nothing"]),
        helper.make_node("Add", [image, "slow.nothing"], ["slow.image"]),
    ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return model.SerializeToString(deterministic=True)


@cache
def heavy(layers: int = 15) -> bytes:
    """Return an explained network of random weights: 128 x 128 pixels, 0.6 G multiply-adds, as ResNet-18 takes."""
    convs = "\n".join(
        f"c{i} = Conv <pads: ints = [1, 1, 1, 1]> (r{i}, w{i})\nr{i + 1} = Relu (c{i})" for i in range(layers)
    )
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    heavy (float[batch, 3, {HEAVY_SIZE}, {HEAVY_SIZE}] image) => (float[batch, 3] logits)
    {{
        stem = Conv <strides: ints = [4, 4], pads: ints = [3, 3, 3, 3]> (image, stem_weight)
        r0 = Relu (stem)
        {convs}
        pooled = GlobalAveragePool (r{layers})
        flat = Flatten (pooled)
        logits = Gemm <transB: int = 1> (flat, head_weight, head_bias)
    }}
    """
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(4)
    shapes = {"stem_weight": (CHANNELS, 3, 7, 7)} | {f"w{i}": (CHANNELS, CHANNELS, 3, 3) for i in range(layers)}
    shapes |= {"head_weight": (len(NAMES), CHANNELS), "head_bias": (len(NAMES),)}
    for name, shape in shapes.items():
        scale = np.sqrt(2 / np.prod(shape[1:]))  # keeps the size of activations, layer after layer
        model.graph.initializer.append(numpy_helper.from_array((random.normal(size=shape) * scale).astype("f4"), name))
    plain = read_plain(model.SerializeToString(), names=NAMES)
    images = random.random((12, 3, HEAVY_SIZE, HEAVY_SIZE)).astype(np.float32)
    selection = fit(plain, [(images, np.arange(12) % len(NAMES))], k1=3, k2=3).selection
    return attach(plain, selection, layer=Layer()).SerializeToString(deterministic=True)
