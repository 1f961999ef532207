"""Find one's way in an ONNX graph: who makes what, and where the cells of a conv map lie in the picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from analyzers.errors import ModelError
from analyzers.manifest import Grid

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
        "Round",
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
            name, number = next(iter(value.items()))
            return np.array(number, np.float32 if name.startswith("value_float") else None)
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
_Layout = tuple[int, int]  # which axes are height and width
_LAYOUTS: tuple[_Layout, ...] = ((2, 3), (1, 2), (3, 4))  # (3, 4): channels in groups


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
    layout: dict[str, _Layout] = {picture: (2, 3)}
    for node in ancestors(graph, tensor):
        if node.op_type != "Shape" and (moving := [name for name in node.input if name in reach]):
            here = layout[moving[0]]
            if node.op_type in {"Transpose", "Reshape"}:
                there = _turned(node, here) if node.op_type == "Transpose" else _grouped(graph, node, here, sizes)
                followed = reach[moving[0]] if there in _LAYOUTS else None
                here = there if followed else (2, 3)
            else:
                mixed = any(reach[name] and layout[name] != here for name in moving)
                followed = None if mixed else _follow(graph, node, reach, sizes, here)
            reach |= dict.fromkeys(node.output, followed)
            layout |= dict.fromkeys(node.output, here)
    if layout.get(tensor) != (2, 3):
        return None
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


def _turned(node: NodeProto, layout: _Layout) -> _Layout:
    """Return which axes are height and width behind a Transpose; (-1, -1) where it moves the batch axis."""
    order = list(np.ravel(np.array(attributes(node).get("perm", ()))))
    return (order.index(layout[0]), order.index(layout[1])) if len(order) > 3 and order[0] == 0 else (-1, -1)


def _grouped(graph: Graph, node: NodeProto, layout: _Layout, sizes: _Sizes) -> _Layout:
    """Return which axes are height and width behind a Reshape that only parts or joins channels; else (-1, -1)."""
    shape = graph.constant(node.input[1])
    extent = sizes.get(node.input[0]) or sizes.get(node.output[0])
    if shape is None or extent is None or len(shape) < 4 or layout[0] < 2 or tuple(shape[-2:].tolist()) != extent:
        return (-1, -1)
    return (len(shape) - 2, len(shape) - 1)


def _follow(
    graph: Graph, node: NodeProto, reach: dict[str, _Axes | None], sizes: _Sizes, layout: _Layout
) -> _Axes | None:
    """Return the cells of a node's output, or None where it does more than move a window over the picture."""
    source = reach.get(node.input[0])
    channels = 6 - sum(layout)
    if node.op_type in ELEMENTWISE or (
        node.op_type == "Concat" and attributes(node)["axis"] in (channels, channels - 4)
    ):
        return _merged(node, reach, sizes)
    if source is None or any(name in reach for name in node.input[1:]):
        return None
    if (node.op_type == "Conv" or node.op_type in _POOLS) and layout == (2, 3):
        return _windowed(graph, node, source, sizes)
    if node.op_type in {"Slice", "Pad"} and layout != (3, 4):
        return _moved(graph, node, source, layout)
    if node.op_type == "Gather" and attributes(node).get("axis", 0) in (channels, channels - 4):
        return source  # channels in another order
    if node.op_type == "Split" and attributes(node).get("axis", 0) in (channels, channels - 4):
        return source
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


def _moved(graph: Graph, node: NodeProto, source: _Axes, layout: _Layout) -> _Axes | None:
    """Return the cells behind a Slice or Pad with constant numbers; channels may come and go, however many."""
    over = graph.constant(node.input[3]) if node.op_type == "Slice" and len(node.input) > 3 else None
    if over is not None and {int(axis) % 4 for axis in np.ravel(over)} == {6 - sum(layout)}:
        return source
    constants = [graph.constant(name) if name else None for name in node.input[1:]]
    if any(value is None for value, name in zip(constants, node.input[1:], strict=True) if name):
        return None
    numbers = [None if value is None else np.ravel(value).tolist() for value in constants] + [None] * 4
    cells = dict(zip(layout, source, strict=True))
    if node.op_type == "Pad":
        pads = numbers[0] or []
        for axis, pad in zip(numbers[2] or range(4), pads[: len(pads) // 2], strict=True):
            if axis % 4 in cells:
                cells[axis % 4] = cells[axis % 4].window(1, 1, 1, pad)
        return cells[layout[0]], cells[layout[1]]
    starts = numbers[0] or []
    steps = numbers[3] or [1] * len(starts)
    for axis, start, step in zip(numbers[2] or range(len(starts)), starts, steps, strict=True):
        if axis % 4 == 0 or start < 0 or step < 1:
            return None
        if axis % 4 in cells:
            cells[axis % 4] = cells[axis % 4].window(1, step, 1, -start)
    return cells[layout[0]], cells[layout[1]]


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
