"""The conv maps of an ONNX model: which there are, how large, and where their cells lie in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper

from analyzers.errors import ModelError
from analyzers.execution import Device
from analyzers.graph import ELEMENTWISE, Graph, grid_of
from analyzers.manifest import METADATA_KEY, Grid, Manifest, ModelInput
from analyzers.plain import load_onnx
from analyzers.preprocessing import NOTHING, Preprocessing, picture_input, refuse_other_numbers
from analyzers.runtime import Session, open_session

DEFAULT_LAYERS = 3
MIN_CELLS = 4


@dataclass(frozen=True, slots=True)
class ConvMap:
    """The output of a convolution, behind the pointwise operations that follow it.

    Attributes:
        tensor: its name.
        filters: how many.
        grid: where its cells lie.
    """

    tensor: str
    filters: int
    grid: Grid

    def __str__(self) -> str:
        height, width = self.grid.cells
        stride = f"{self.grid.stride[0]:g}" + ("" if len(set(self.grid.stride)) == 1 else f", {self.grid.stride[1]:g}")
        return f"{self.tensor} ({self.filters} filters of {height} x {width} cells, every {stride} pixels)"


def read_network(data: bytes, preprocessing: Preprocessing = NOTHING) -> tuple[ModelProto, ModelInput]:
    """Read any ONNX model of pictures, explained or not, classifier or not.

    Args:
        data: the file.
        preprocessing: what it wants its pictures to be, where the file does not see to that itself.

    Raises:
        ModelError: it is not ONNX, or its input is not one picture.
    """
    model = load_onnx(data)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in metadata:
        return model, picture_input(model, preprocessing)
    known = Manifest.from_metadata(metadata).input
    refuse_other_numbers(known, preprocessing)
    return model, known


def open_maps(model: ModelProto, tensors: Sequence[str], *, device: Device = "cpu") -> Session:
    """Load a model so that it gives these tensors and computes nothing else."""
    part = ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors)
    return open_session(part.SerializeToString(), device=device)


def find_conv_maps(model: ModelProto, picture: ModelInput) -> tuple[ConvMap, ...]:
    """Return the conv maps whose cells lie on a grid over the picture, in the graph's own order.

    Raises:
        ModelError: there are none.
    """
    names = list(dict.fromkeys(_behind(model)))
    if not names:
        raise ModelError("the model has no convolution, so it has no conv maps")
    noise = np.random.default_rng(0).random((1, 3, picture.height, picture.width), np.float32)
    answer = open_maps(model, names).run({picture.tensor: noise})
    found = []
    for name in names:
        shape = answer[name].shape
        grid = grid_of(model, name, (shape[2], shape[3])) if len(shape) == 4 else None
        if grid is not None:
            found.append(ConvMap(name, shape[1], grid))
    if not found:
        raise ModelError("no conv map of the model lies on a grid over the picture")
    return tuple(found)


def default_maps(maps: Sequence[ConvMap]) -> tuple[ConvMap, ...]:
    """Return the last map of each of the three coarsest resolutions of at least 4 x 4 cells, top layer first."""
    last = {one.grid.cells: one for one in maps if min(one.grid.cells) >= MIN_CELLS}
    order = [one for one in reversed(maps) if last.get(one.grid.cells) is one]
    return tuple(order[:DEFAULT_LAYERS])


def named_maps(maps: Sequence[ConvMap], names: Sequence[str]) -> tuple[ConvMap, ...]:
    """Return the maps of these names, which go from the top layer down.

    Raises:
        ModelError: a name is unknown or given twice, or they go another way.
    """
    known = {one.tensor: one for one in maps}
    for name in names:
        if name not in known:
            raise ModelError(f"there is no conv map '{name}'; there are {', '.join(map(str, maps))}")
    if len(set(names)) != len(names):
        raise ModelError(f"a layer is named twice in {','.join(names)}; name each once")
    order = {one.tensor: place for place, one in enumerate(maps)}
    right = sorted(names, key=lambda name: -order[name])
    if list(names) != right:
        raise ModelError(f"layers go from the top one down: {','.join(right)}, not {','.join(names)}")
    return tuple(known[name] for name in names)


def _behind(model: ModelProto) -> list[str]:
    """Return the tensor behind each convolution and the pointwise operations that alone read it."""
    readers: dict[str, list[int]] = {}
    for number, node in enumerate(model.graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(number)
    outputs = {output.name for output in model.graph.output}
    graph = Graph(model)
    found = []
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        name = node.output[0]
        while len(readers.get(name, ())) == 1 and name not in outputs:
            reader = model.graph.node[readers[name][0]]
            if reader.op_type not in ELEMENTWISE or not reader.output or _gated(graph, reader, name):
                break
            name = reader.output[0]
        found.append(name)
    place = {output: number for number, node in enumerate(model.graph.node) for output in node.output}
    return sorted(found, key=lambda name: place[name])


def _gated(graph: Graph, reader: NodeProto, name: str) -> bool:
    """Whether a product takes its other factor from the network: a mask or a gate, not a scale."""
    return reader.op_type == "Mul" and any(graph.constant(other) is None for other in reader.input if other != name)
