"""The body of an explained model: the part up to its conv map, which smaller copies compute in fewer bits.

What comes after it (part templates, the mean, the final layer, every ledger) stays in float32, so that an explanation
adds up as exactly in a copy as in the model, whatever the body's numbers are.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from analyzers.graph import Graph, ancestors
from analyzers.manifest import Manifest

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def body(model: ModelProto, known: Manifest) -> list[NodeProto]:
    """Return the nodes up to the map behind the features, before any mask, or up to the features without a map."""
    section, parts = known.class_features, known.parts
    if section is None:
        return []
    graph = Graph(model)
    nodes = list(ancestors(graph, section.map or section.pooled))
    if parts is None:
        return nodes
    before = list(ancestors(graph, parts.layer))
    inside, made = {node.output[0] for node in nodes}, {node.output[0] for node in before}
    behind = [node for node in nodes if node.output[0] not in made]
    mask_alone = made <= inside and not any(node.op_type in _WEIGHTED for node in behind)
    return before if mask_alone else nodes


def outside(model: ModelProto, inside: list[NodeProto]) -> list[NodeProto]:
    """Return the other nodes, in the graph's order."""
    made = {node.output[0] for node in inside}
    return [node for node in model.graph.node if node.output[0] not in made]
