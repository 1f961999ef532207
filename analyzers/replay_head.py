"""The nodes between a classifier's features and its scores, run on their own: what the final layer is, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from analyzers.errors import ModelError
from analyzers.graph import Graph
from analyzers.runtime import open_session

TOLERANCE = 1e-4

RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast", "Transpose"})
LINEAR = frozenset({"Gemm", "MatMul", "Conv", "Einsum"})

FloatArray = npt.NDArray[np.float32]
Values = dict[str, npt.NDArray[Any]]


class Replay:
    """The nodes between the features and the scores, as a model of their own."""

    def __init__(self, graph: Graph, nodes: list[NodeProto], source: str, values: Values, logits: str) -> None:
        self.source, self.nodes = source, nodes
        self.channels_first = nodes[-1].op_type == "Conv"
        constants: dict[str, npt.NDArray[Any]] = {}
        replayed: list[NodeProto] = []
        for node in reversed(nodes):
            copy = NodeProto()
            copy.CopyFrom(node)
            if node.op_type in RESHAPES - {"Transpose", "Cast", "Identity"}:
                # Sizes may be computed from tensors that are cut off here; those of two pictures are known.
                shape = [-1, *values[node.output[0]].shape[1:]] if node.output[0] in values else None
                if shape is None:
                    raise ModelError(f"the shape of '{node.output[0]}' is unknown")
                name = f"pellucid.shape.{len(replayed)}"
                constants[name] = np.array(shape, np.int64)
                copy = helper.make_node("Reshape", [node.input[0], name], [node.output[0]])
            else:
                for name in node.input:
                    value = graph.constant(name) if name else None
                    if name and value is None and name in values and name != source and name not in _outputs(nodes):
                        value = values[name]
                    if value is not None:
                        constants[name] = value
            replayed.append(copy)
        self._constants = constants
        shape = [None, *values[source].shape[1:]]
        body = helper.make_graph(
            replayed,
            "head",
            [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)],
            [helper.make_empty_tensor_value_info(logits)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        model = helper.make_model(body, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
        self._session, self._logits = open_session(model.SerializeToString()), logits

    def run(self, rows: FloatArray) -> FloatArray:
        """Return the scores (rows, classes) of what stands at the cut."""
        answer = self._session.run({self.source: np.ascontiguousarray(rows, np.float32)})[self._logits]
        return np.asarray(answer.reshape(len(rows), -1), np.float32)

    def stored(self, classes: int, features: int) -> list[FloatArray]:
        """Return numbers of the file that could be the layer's, as (classes, features), to keep them bit for bit."""
        names = [name for node in self.nodes if node.op_type in LINEAR for name in node.input]
        values = [self._constants[name] for name in names if name in self._constants]
        fitting = [value for value in values if value.size == classes * features and value.dtype == np.float32]
        rows = [value.reshape(classes, features) for value in fitting if value.shape[0] == classes]
        columns = [value.reshape(features, classes).T for value in fitting if value.shape[-1] == classes]
        return [np.ascontiguousarray(form) for form in (*rows, *columns)]


def _outputs(nodes: list[NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.output}


def close(one: npt.NDArray[Any], other: npt.NDArray[Any], floor: float = 1.0) -> bool:
    """Whether two arrays are of one shape and equal within 1e-4 of the largest value, of `floor` at least."""
    if one.shape != other.shape:
        return False
    return bool(abs(one - other).max() <= TOLERANCE * max(floor, float(abs(other).max())))


def close_but_for_rounding(one: npt.NDArray[Any], other: npt.NDArray[Any], offset: npt.NDArray[Any]) -> bool:
    """Whether `one` equals other - offset within 1e-4, and within what single precision leaves of the difference."""
    difference = other.astype(np.float64) - offset
    allowed = TOLERANCE * float(abs(difference).max()) + 2e-6 * float(abs(other).max())
    return bool(abs(one - difference).max() <= allowed)
