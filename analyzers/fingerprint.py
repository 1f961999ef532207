"""Tell whether two ONNX files compute the same conv maps: explained or plain, from the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from onnx import AttributeProto, ModelProto, numpy_helper

from analyzers.graph import Graph, ancestors


def maps_fingerprint(model: ModelProto, tensors: Sequence[str]) -> str:
    """Return the SHA-256 over everything that some tensors are computed from: operators in order, and weights.

    What a file computes besides (a head, explanations) and how its metadata reads do not matter, so a plain file and
    its explained versions have the same one.
    """
    graph = Graph(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    digest = hashlib.sha256()
    for node in ancestors(graph, *tensors):
        digest.update(f"{node.op_type} {' '.join(node.input)} -> {' '.join(node.output)}\n".encode())
        for attribute in sorted(node.attribute, key=lambda attribute: attribute.name):
            bare = AttributeProto()
            bare.CopyFrom(attribute)
            bare.ClearField("doc_string")
            digest.update(bare.SerializeToString(deterministic=True))
        for name in node.input:
            if name in constants:
                array = numpy_helper.to_array(constants[name])
                digest.update(f"{array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()
