"""Find one's way in a classifier's ONNX graph: its final layer, the map that was pooled, and where cells lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from analyzers.class_features import Head
from analyzers.errors import ModelError
from analyzers.manifest import Grid

_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Identity", "Dropout", "Unsqueeze"})
ELEMENTWISE = frozenset(
    [
        "Add",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Div",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Mul",
        "PRelu",
        "Pow",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Sub",
        "Tanh",
        "Neg",
        "Mish",
        "LRN",
    ]
)
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})


@dataclass(frozen=True, slots=True)
class Classifier:
    """What was found at the end of a graph.

    Attributes:
        logits: tensor of class scores before the activation.
        pooled: tensor of features that the final layer reads, (batch, features).
        head: the final layer's numbers.
        map: conv map that was averaged into `pooled`, (batch, features, height, width); None if there is none.
        activation: "softmax" or "sigmoid" if the graph ends in one, else None.
    """

    logits: str
    pooled: str
    head: Head
    map: str | None
    activation: str | None


class Graph:
    """Look-ups in a graph by tensor name."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.producer = {name: node for node in model.graph.node for name in node.output if name}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}

    def constant(self, name: str) -> npt.NDArray[np.generic] | None:
        """Return the value of an initializer or Constant node, or None if `name` is computed."""
        if name in self._initializers:
            return numpy_helper.to_array(self._initializers[name])
        node = self.producer.get(name)
        if node is not None and node.op_type == "Constant":
            value = attributes(node)
            if isinstance(tensor := value.get("value"), onnx.TensorProto):
                return numpy_helper.to_array(tensor)
            return np.array(next(iter(value.values())))
        if node is not None and node.op_type == "Identity":
            return self.constant(node.input[0])
        return None

    def single_input(self) -> onnx.ValueInfoProto:
        """Return the only input that is not an initializer.

        Raises:
            ModelError: there are several.
        """
        inputs = [value for value in self.model.graph.input if value.name not in self._initializers]
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs[:8]) or "none"
            raise ModelError(f"the model has {len(inputs)} inputs ({names}); expected one, the picture")
        return inputs[0]


def attributes(node: NodeProto) -> dict[str, object]:
    """Return a node's attributes by name."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def find_classifier(model: ModelProto, scores: str | None = None) -> Classifier:
    """Find the final linear layer behind an output, and the pooled map before it.

    Args:
        model: the graph.
        scores: the tensor of class scores; the model's only output where None.

    Raises:
        ModelError: there is no linear layer right before the output, or more than one activation between them; the
            message names what stands there.
    """
    graph = Graph(model)
    if scores is None and len(model.graph.output) != 1:
        names = ", ".join(output.name for output in model.graph.output[:8])
        raise ModelError(f"the model has {len(model.graph.output)} outputs ({names}); expected one, the class scores")
    tensor, activation = scores or model.graph.output[0].name, None
    while (node := graph.producer.get(tensor)) is not None and node.op_type in {
        "Softmax",
        "Sigmoid",
        "Identity",
    }:
        if node.op_type != "Identity":
            over_classes = node.op_type == "Sigmoid" or attributes(node).get("axis", -1) in (1, -1)
            if activation is not None or not over_classes:
                raise ModelError(f"'{tensor}' is made by a second activation or one across pictures, {node.op_type}")
            activation = node.op_type.lower()
        tensor = node.input[0]
    pooled, head = _linear(graph, tensor)
    return Classifier(tensor, pooled, head, _pooled_map(graph, pooled), activation)


def _linear(graph: Graph, logits: str) -> tuple[str, Head]:
    """Return the input and the numbers of the linear layer that makes `logits`."""
    node = graph.producer.get(logits)
    if node is not None and node.op_type == "Gemm":
        return _gemm(graph, node)
    bias: npt.NDArray[np.generic] | None = None
    product = node
    if node is not None and node.op_type == "Add":
        for one, other in ((node.input[0], node.input[1]), (node.input[1], node.input[0])):
            if (constant := graph.constant(other)) is not None:
                bias, product = constant, graph.producer.get(one)
    if product is not None and product.op_type == "MatMul":
        weight = graph.constant(product.input[1])
        if weight is not None and weight.ndim == 2:
            return product.input[0], _head(weight.T, np.zeros(1) if bias is None else bias)
    found = "nothing" if node is None else f"{node.op_type} '{node.name}'"
    raise ModelError(
        f"no final linear layer: '{logits}' is made by {found}; expected Gemm, or MatMul and Add, with constant weights"
    )


def _gemm(graph: Graph, node: NodeProto) -> tuple[str, Head]:
    options = attributes(node)
    weight = graph.constant(node.input[1])
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0 and not options.get("transA", 0)
    if weight is None or bias is None or not plain:
        raise ModelError(f"the final layer, Gemm '{node.name}', has computed or scaled weights; expected constants")
    weight = weight if options.get("transB", 0) else weight.T
    return node.input[0], _head(weight, bias)


def _head(weight: npt.NDArray[np.generic], bias: npt.NDArray[np.generic]) -> Head:
    if weight.dtype != np.float32:
        raise ModelError(f"the final layer's weights are {weight.dtype}; expected float32")
    classes = len(weight)
    if bias.shape not in {(), (1,), (classes,), (1, 1), (1, classes)}:
        raise ModelError(f"the final layer's bias has shape {list(bias.shape)}; expected one number a class, {classes}")
    every = np.broadcast_to(bias.reshape(-1), (classes,))
    return Head(np.ascontiguousarray(weight, np.float32), np.array(every, np.float32))


def _pooled_map(graph: Graph, pooled: str) -> str | None:
    """Walk back over reshapes to a global average pooling and return what it averages."""
    node = graph.producer.get(pooled)
    while node is not None and node.op_type in _RESHAPES:
        node = graph.producer.get(node.input[0])
    if node is None:
        return None
    if node.op_type == "GlobalAveragePool":
        return node.input[0]
    if node.op_type == "ReduceMean":
        axes = attributes(node).get("axes")
        if axes is None and len(node.input) > 1:
            axes = graph.constant(node.input[1])
        if axes is not None and sorted(int(axis) % 4 for axis in np.ravel(np.array(axes))) == [2, 3]:
            return node.input[0]
    return None


def filter_by_filter(model: ModelProto, pooled: str, layer: str) -> bool:
    """Whether the map `pooled` is the map `layer`, each filter under a mask or a function of its own at most."""
    graph = Graph(model)
    waiting = [pooled]
    while waiting:
        name = waiting.pop()
        if name == layer:
            return True
        node = graph.producer.get(name)
        if node is not None and node.op_type in {"Mul", "Relu", "Identity", "Dropout"}:
            waiting.extend(node.input)
    return False


@dataclass(frozen=True, slots=True)
class _Cells:
    """Stride, first centre and receptive field of a map along one axis, in input pixels."""

    stride: float = 1.0
    offset: float = 0.5
    field: float = 1.0

    def window(self, size: int, step: int, dilation: int, pad: float) -> _Cells:
        reach = (size - 1) * dilation
        return _Cells(
            stride=self.stride * step,
            offset=self.offset + (reach / 2 - pad) * self.stride,
            field=self.field + reach * self.stride,
        )

    def extent(self, count: int, size: int) -> float:
        """Return the field, or what covers a picture of `size` pixels from each of `count` cells if it is endless."""
        last = self.offset + (count - 1) * self.stride
        return self.field if self.field < np.inf else 2 * max(last, size - self.offset)

    def seen_from(self, other: _Cells) -> float:
        """Return the field round the other's centres that holds this one's."""
        return self.field + 2 * abs(self.offset - other.offset)


_Axes = tuple[_Cells, _Cells]
_Sizes = dict[str, tuple[int, int]]


def grid_of(model: ModelProto, tensor: str, cells: tuple[int, int]) -> Grid | None:
    """Return how the cells of a conv map lie in the picture, from the graph's convolutions and poolings.

    Where a cell also depends on the picture in a way that is not local (a gate from global pooling, say), its
    receptive field covers the whole picture.

    Args:
        model: the graph.
        tensor: the conv map.
        cells: its (height, width).

    Returns:
        None where the map does not come from the picture through convolutions, poolings and pointwise operations.
    """
    graph = Graph(model)
    picture = graph.single_input().name
    sizes = _map_sizes(model)
    reach: dict[str, _Axes | None] = {picture: (_Cells(), _Cells())}  # None: cells cannot be followed
    for node in ancestors(graph, tensor):
        if node.op_type != "Shape" and any(name in reach for name in node.input):
            reach |= dict.fromkeys(node.output, _follow(graph, node, reach, sizes))
    axes = reach.get(tensor)
    if axes is None:
        return None
    y, x = axes
    return Grid(
        cells=cells,
        stride=(y.stride, x.stride),
        offset=(y.offset, x.offset),
        receptive_field=(y.extent(cells[0], sizes[picture][0]), x.extent(cells[1], sizes[picture][1])),
    )


def _follow(graph: Graph, node: NodeProto, reach: dict[str, _Axes | None], sizes: _Sizes) -> _Axes | None:
    """Return the cells of a node's output, or None where it does more than move a window over the picture."""
    source = reach.get(node.input[0])
    if node.op_type in ELEMENTWISE or (node.op_type == "Concat" and attributes(node)["axis"] in (1, -3)):
        return _merged(node, reach, sizes)
    if source is None or any(name in reach for name in node.input[1:]):
        return None
    if node.op_type == "Conv" or node.op_type in _POOLS:
        return _windowed(graph, node, source, sizes)
    if node.op_type in {"Slice", "Pad"}:
        return _moved(graph, node, source)
    return None


def _merged(node: NodeProto, reach: dict[str, _Axes | None], sizes: _Sizes) -> _Axes | None:
    """Return the cells of a pointwise operation: those of its inputs of full size, as wide as all of them together."""
    inputs = [name for name in node.input if name in reach]
    full = [axes for name in inputs if (axes := reach[name]) and sizes.get(name) == sizes.get(node.output[0])]
    if not full:
        return None
    merged = []
    for axis in (0, 1):
        widest = max((axes[axis] for axes in full), key=lambda cells: cells.field)
        if any(axes[axis].stride != widest.stride for axes in full):
            return None
        field = max(axes[axis].seen_from(widest) for axes in full) if len(full) == len(inputs) else np.inf
        merged.append(_Cells(widest.stride, widest.offset, field))
    return merged[0], merged[1]


def _moved(graph: Graph, node: NodeProto, source: _Axes) -> _Axes | None:
    """Return the cells behind a Slice or Pad with constant numbers; channels may come and go."""
    constants = [graph.constant(name) if name else None for name in node.input[1:]]
    if any(value is None for value, name in zip(constants, node.input[1:], strict=True) if name):
        return None
    numbers = [None if value is None else np.ravel(value).tolist() for value in constants] + [None] * 4
    axes = list(source)
    if node.op_type == "Pad":
        pads = numbers[0] or []
        for axis, pad in zip(numbers[2] or range(4), pads[: len(pads) // 2], strict=True):
            if axis % 4 in (2, 3):
                axes[axis % 4 - 2] = axes[axis % 4 - 2].window(1, 1, 1, pad)
        return axes[0], axes[1]
    starts = numbers[0] or []
    steps = numbers[3] or [1] * len(starts)
    for axis, start, step in zip(numbers[2] or range(len(starts)), starts, steps, strict=True):
        if axis % 4 == 0 or start < 0 or step < 1:
            return None
        if axis % 4 > 1:
            axes[axis % 4 - 2] = axes[axis % 4 - 2].window(1, step, 1, -start)
    return axes[0], axes[1]


def _windowed(graph: Graph, node: NodeProto, axes: _Axes, sizes: _Sizes) -> _Axes | None:
    options = attributes(node)
    size = options.get("kernel_shape")
    if size is None:
        weight = graph.constant(node.input[1])
        size = () if weight is None else weight.shape[2:]
    size = [int(s) for s in np.ravel(np.array(size))]
    if len(size) != 2:
        return None
    step = np.ravel(np.array(options.get("strides", [1, 1]))).astype(int)
    dilation = np.ravel(np.array(options.get("dilations", [1, 1]))).astype(int)
    pads = np.ravel(np.array(options.get("pads", [0, 0, 0, 0]))).astype(float)
    automatic = options.get("auto_pad", b"NOTSET")
    before = [float(pads[0]), float(pads[1])]
    if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        extent = sizes.get(node.input[0])
        for axis in (0, 1):
            length = extent[axis] if extent else int(step[axis])
            total = max(
                (-(-length // step[axis]) - 1) * step[axis] + (size[axis] - 1) * dilation[axis] + 1 - length,
                0,
            )
            before[axis] = float(total // 2 if automatic == b"SAME_UPPER" else total - total // 2)
    y, x = (axes[a].window(size[a], int(step[a]), int(dilation[a]), before[a]) for a in (0, 1))
    return y, x


def _map_sizes(model: ModelProto) -> _Sizes:
    """Return (height, width) of every four-dimensional tensor whose shape inference knows."""
    inferred = onnx.shape_inference.infer_shapes(model)
    sizes = {}
    for value in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]:
        dimensions = value.type.tensor_type.shape.dim
        if len(dimensions) == 4 and dimensions[2].dim_value and dimensions[3].dim_value:
            sizes[value.name] = (dimensions[2].dim_value, dimensions[3].dim_value)
    return sizes


def ancestors(graph: Graph, *tensors: str) -> Iterator[NodeProto]:
    """Yield the nodes that tensors depend on, in the graph's own (topological) order."""
    needed, waiting = set(), list(tensors)
    while waiting:
        node = graph.producer.get(waiting.pop())
        if node is not None and node.output[0] not in needed:
            needed.add(node.output[0])
            waiting.extend(node.input)
    return (node for node in graph.model.graph.node if node.output[0] in needed)
