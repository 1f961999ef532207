"""Explained graphs of every kind that this project writes, with random numbers: only their operators matter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import ModelProto

from analyzers.attach import Selection, attach
from analyzers.attach_graph import attach_graph
from analyzers.conv_maps import default_maps, find_conv_maps
from analyzers.eight_bits import to_eight_bits
from analyzers.explanatory_graph import ExplanatoryGraph
from analyzers.graph_inference import Form
from analyzers.half import to_half
from analyzers.plain import Layer, Plain, manifest_of, read_plain
from analyzers.preprocessing import NOTHING, Preprocessing
from analyzers.smaller import named
from benchmarks.graph_latency import graph_of
from benchmarks.latency import CLASSES, K
from training.backbones import BACKBONES
from training.export import MAP, export
from training.network import Network

NAMES = ("cat", "dog", "owl")
SIZE, FILTERS = 32, 8
OPSETS = (18, 20, 22, 24)

# A plain classifier as anybody may bring it.
TINY = """
<ir_version: 10, opset_import: ["" : {opset}]>
tiny ({kind}[{shape}] picture) => (float[batch, 3] logits)
{{
    {start}
    conv = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (image, conv_weight, conv_bias)
    relu = Relu (conv)
    pooled = GlobalAveragePool (relu)
    flat = Flatten (pooled)
    logits = Gemm <transB: int = 1> (flat, head_weight, head_bias)
}}
"""
FLOATS = ("float", "batch, 3, 32, 32", "image = Identity (picture)")
BYTES = (
    "uint8",
    "batch, 32, 32, 3",
    "turned = Transpose <perm = [0, 3, 1, 2]> (picture)\n image = Cast <to = 1> (turned)",
)


def brought(opset: int, start: tuple[str, str, str] = FLOATS, preprocessing: Preprocessing = NOTHING) -> Plain:
    """Return a small classifier, read as a user's file is."""
    random = np.random.default_rng(0)
    kind, shape, first = start
    model = onnx.parser.parse_model(TINY.format(opset=opset, kind=kind, shape=shape, start=first))
    weights = {
        "conv_weight": random.normal(0, 0.5, (FILTERS, 3, 3, 3)),
        "conv_bias": random.normal(0, 0.1, FILTERS),
        "head_weight": random.normal(0, 2, (len(NAMES), FILTERS)),
        "head_bias": random.normal(0, 1, len(NAMES)),
    }
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return read_plain(model.SerializeToString(), names=NAMES, preprocessing=preprocessing)


def trained(backbone: str, size: int, filters: int) -> Plain:
    """Return a network of ours as it is exported, not trained."""
    torch.manual_seed(0)
    network = Network(BACKBONES[backbone](), CLASSES, size=size, filters=filters)
    return export(network, tuple(f"class {c}" for c in range(CLASSES)), size)


def explained(plain: Plain, layer: Layer) -> ModelProto:
    """Attach parts and class features, with contrast and evidence where they have a place."""
    classes, features = plain.found.head.weight.shape
    k = min(K, features)
    sets = np.stack([np.random.default_rng(c).permutation(features)[:k] for c in range(classes)])
    return attach(plain, Selection(sets, k, "contribution"), layer=layer)


def with_graph(model: ModelProto, *, form: Form, rooted: bool, by_class: bool = False) -> ModelProto:
    """Attach a random explanatory graph of the default layers."""
    known = manifest_of(model)
    graph = graph_of(model, default_maps(find_conv_maps(model, known.input)), rooted)
    return attach_graph(model, _of_each_class(graph, known.classes) if by_class else graph, nodes=20, form=form)


def _of_each_class(graph: ExplanatoryGraph, classes: tuple[str, ...]) -> ExplanatoryGraph:
    """Return the same graph for every class."""

    def repeated(array: np.ndarray) -> np.ndarray:
        return np.repeat(array, len(classes), 0)

    shared = ("tensor", "grid", "scale", "floor")
    layers = tuple(
        replace(
            layer,
            **{name: repeated(getattr(layer, name)) for name in layer.__dataclass_fields__ if name not in shared},
        )
        for layer in graph.layers
    )
    root = graph.root
    if root is not None:
        root = replace(root, nodes=repeated(root.nodes), mean=repeated(root.mean))
    return replace(graph, layers=layers, root=root, classes=classes)


def every_kind() -> Iterator[tuple[str, ModelProto]]:
    """Make the models, one at a time, each with what is special about it."""
    for opset in OPSETS:
        yield f"brought, operator set {opset}", explained(brought(opset), Layer())
    normal = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3), value_range=(0, 255), channels="BGR")
    yield "brought, normalisation in the graph", explained(brought(20, preprocessing=normal), Layer())
    yield "brought, takes uint8, channels last", explained(brought(20, BYTES), Layer())
    yield from _of_network("ResNet-20 at 32", trained("resnet20", 32, 0))
    yield from _of_network("ResNet-18 at 128, interpretable", trained("resnet18", 128, 512))
    yield "VGG-16 at 64", explained(trained("vgg16", 64, 0), Layer(tensor=MAP))


def _of_network(name: str, plain: Plain) -> Iterator[tuple[str, ModelProto]]:
    model = explained(plain, Layer(tensor=MAP))
    yield f"{name}", model
    forms: tuple[Form, ...] = ("hard", "soft")
    for form in forms:
        yield f"{name}, {form} graph", with_graph(model, form=form, rooted=False)
        yield f"{name}, {form} graph, root", with_graph(model, form=form, rooted=True)
        yield f"{name}, {form} graph of each class", with_graph(model, form=form, rooted=True, by_class=True)
    yield f"{name}, fp16", to_half(named(model))
    size = plain.manifest.input
    pictures = np.random.default_rng(0).random((4, 3, size.height, size.width), np.float32)
    yield f"{name}, int8", to_eight_bits(named(model), pictures)
