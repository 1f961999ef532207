"""Find an explanatory graph's nodes inside an ONNX model, in the run that predicts, with standard operators alone.

`analyzers/explanatory_graph.py` defines what is computed. Two forms of it:
    hard: a node is at its best cell, its score the largest log(F + LOG_EPS) + log P over cells.
    soft: it is at the mean of all cells weighted by F P, between cells, and its score is the log of that sum, to which
        LOG_EPS of F at the expected place is added, so that a node whose map is empty is there.
A node is present if its filter fires there (F > LOG_EPS; soft: the sum counts instead) and its score reaches its
threshold. That no two patterns of a filter are reported at one place is left to `nodes.decode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, numpy_helper

from analyzers import manifest
from analyzers.errors import ModelError
from analyzers.explanatory_graph import LOG_EPS, QUANTILES, ROOT_EPS, ExplanatoryGraph, GraphLayer, Root
from analyzers.graph_look import places

ROW = "explanatory_graph"
Form = Literal["hard", "soft"]
Int64Array = npt.NDArray[np.int64]

_TINY = 1e-12


class _Writer:
    """Appends operators and constants to a model; `self(...)` returns the name of what an operator gives."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.count = 0

    def __call__(self, operator: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:  # noqa: ANN401
        self.count += 1
        name = out or f"{ROW}/{operator.lower()}_{self.count}"
        node = helper.make_node(operator, list(inputs), [name], name=f"{ROW}/{operator}_{self.count}", **attributes)
        self.graph.node.append(node)
        return name

    def constant(self, array: npt.ArrayLike, dtype: type = np.float32) -> str:
        self.count += 1
        name = f"{ROW}/constant_{self.count}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(array, dtype, order="C"), name))
        return name

    def output(self, name: str, kind: int, *shape: str | int) -> str:
        self.graph.output.append(helper.make_tensor_value_info(name, kind, ["batch", *shape]))
        return name


@dataclass(frozen=True, slots=True)
class _Scene:
    """What all layers share.

    Attributes:
        write: the model.
        chosen: each picture's graph, int64 (batch,); None for one graph for all.
        size: (height, width) of the model's input.
        form: of the inference.
        turn: factor and summand, (batch, 1, 2), between places in the picture as it is and as it is taken, the same
            both ways; None where mirroring is not tried.
    """

    write: _Writer
    chosen: str | None
    size: tuple[int, int]
    form: Form
    turn: tuple[str, str] | None = None

    def of_graph(self, array: npt.ArrayLike, dtype: type = np.float32) -> str:
        """Return numbers of the picture's graph: (graphs, ...) -> (batch or 1, ...)."""
        constant = self.write.constant(array, dtype)
        return constant if self.chosen is None else self.write("Gather", constant, self.chosen, axis=0)

    def of_nodes(self, values: str, numbers: Int64Array) -> str:
        """Pick along axis 1 what each of the picture's graph's entries (graphs, ...) names: (batch, ..., rest)."""
        if self.chosen is None:
            return self.write("Gather", values, self.write.constant(numbers[0], np.int64), axis=1)
        picked = self.of_graph(numbers[..., None], np.int64)
        return self.write("GatherND", values, picked, batch_dims=1)

    def turned(self, places: str) -> str:
        """Take places (batch, nodes, 2) from the picture as it is to the picture as it is taken, or back."""
        if self.turn is None:
            return places
        factor, summand = self.turn
        return self.write("Add", self.write("Mul", places, factor), summand)


def append_inference(
    model: ModelProto,
    graph: ExplanatoryGraph,
    numbers: Sequence[Sequence[Int64Array]],
    logits: str,
    size: tuple[int, int],
    form: Form = "hard",
) -> manifest.ExplanatoryGraph:
    """Append the graph's inference and its outputs to a model, and return the manifest's section.

    Args:
        model: computes the graph's conv maps as float32; changed in place.
        graph: what to look for, all of it; `graph_prune.prune` makes it small.
        numbers: for each layer and graph the numbers that nodes have in the learned graph.
        logits: (batch, classes), by whose largest a class's graph is chosen.
        size: (height, width) of the model's input.
        form: hard or soft.
    """
    write = _Writer(model)
    layers = [replace(layer, spread=np.where(layer.filter >= 0, layer.spread, 1)) for layer in graph.layers]
    graph = replace(graph, layers=tuple(layers))
    chosen = None
    if graph.classes:
        chosen = write("ArgMax", logits, axis=1, keepdims=0, out=write.output(f"{ROW}.graph", TensorProto.INT64))
    scene = _Scene(write, chosen, size, form)
    root, turn = None, None
    if graph.root is not None:
        root, turn = _root(scene, graph.root, graph.layers[0])
        scene = replace(scene, turn=turn)
    sections, away = [], None
    for place, layer in enumerate(graph.layers):
        if away is None:
            centre, log_scale = _from_root(scene, layer, root)
        else:
            centre, log_scale = _from_parents(scene, layer, graph.layers[place - 1], away)
        section, away = _layer(scene, layer, centre, log_scale, place, numbers[place])
        sections.append(section)
    return manifest.ExplanatoryGraph(
        layers=tuple(sections),
        form=form,
        graph=f"{ROW}.graph" if graph.classes else None,
        displacement=None if root is None else f"{ROW}.displacement",
        mirrored=None if turn is None else f"{ROW}.mirrored",
    )


def _activation(scene: _Scene, layer: GraphLayer, used: Int64Array, plus: float = 0.0) -> str:
    """Return F + plus of some filters, (batch, used, height, width)."""
    write, picked = scene.write, layer.tensor
    if len(used) < len(layer.scale) or (used != np.arange(len(used))).any():
        picked = write("Gather", picked, write.constant(used, np.int64), axis=1)
    share = write("Mul", picked, write.constant(1 / layer.scale[used][:, None, None]))
    if plus or layer.floor.any():
        share = write("Add", share, write.constant(plus - layer.floor[used].astype(np.float64)[:, None, None]))
    return write("Max", share, write.constant(plus))


def _root(scene: _Scene, root: Root, top: GraphLayer) -> tuple[str, tuple[str, str] | None]:
    """Return the root's displacement less its mean, (batch, 2), and how places turn in pictures taken as mirrored."""
    write, sigma = scene.write, root.sigma
    rows, columns = places(top, scene.size)
    down, right = _axes(root)
    real, node = root.nodes >= 0, np.maximum(root.nodes, 0)
    filters = np.maximum(np.take_along_axis(top.filter, node, 1), 0)
    prior = np.take_along_axis(top.prior, node[..., None], 1).astype(np.float64)  # (graphs, voters, 2)
    hypotheses = (columns, 1 - columns) if root.mirrored else (columns,)

    def near(cells: npt.NDArray[np.float64], axis: int, tried: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(graphs, voters, tried, cells); 0 for voters that pad, so that they say the same of every displacement."""
        away = cells - (prior[..., axis, None] + tried)[..., None]
        return np.asarray(np.exp(-(away**2) / (2 * sigma**2)) * real[..., None, None])

    vertical = scene.of_graph(near(rows, 0, down))
    across = np.concatenate([near(cells, 1, right) for cells in hypotheses], 2)
    horizontal = scene.of_graph(across.swapaxes(2, 3))
    used = np.unique(filters)
    voters = scene.of_nodes(_activation(scene, top, used), np.searchsorted(used, filters))
    mass = write("MatMul", write("MatMul", vertical, voters), horizontal)  # (batch, voters, down, kinds x right)
    votes = write("Log", write("Add", mass, write.constant(ROOT_EPS)))
    total = write("ReduceSum", votes, write.constant([1], np.int64), keepdims=0)
    apart = write("Reshape", total, write.constant([0, len(down), len(hypotheses), len(right)], np.int64))
    listed = write("Reshape", write("Transpose", apart, perm=[0, 2, 1, 3]), write.constant([0, -1], np.int64))
    best = write("ArgMax", listed, axis=1, keepdims=0)
    tried = np.tile(root.displacements, (len(hypotheses), 1))
    found = write("Gather", write.constant(tried), best, axis=0)
    name = write.output(f"{ROW}.displacement", TensorProto.FLOAT, 2)
    away = write("Sub", found, scene.of_graph(root.mean), out=name)
    if not root.mirrored:
        return away, None
    name = write.output(f"{ROW}.mirrored", TensorProto.BOOL)
    mirrored = write("GreaterOrEqual", best, write.constant(len(root.displacements), np.int64), out=name)
    number = write("Cast", mirrored, to=TensorProto.INT64)  # a column c becomes 1 - c
    factor = write("Gather", write.constant([[[1, 1]], [[1, -1]]]), number, axis=0)
    return away, (factor, write("Gather", write.constant([[[0, 0]], [[0, 1]]]), number, axis=0))


def _axes(root: Root) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the displacements downwards and to the right that `root.displacements` is the table of."""
    tried = root.displacements
    width = int((tried[:, 0] == tried[0, 0]).sum())
    down, right = tried[::width, 0], tried[:width, 1]
    if not np.array_equal(np.stack(np.meshgrid(down, right, indexing="ij"), -1).reshape(-1, 2), tried):
        raise ModelError("the root's displacements are no table of rows and columns; learn the graph anew")
    return down.astype(np.float64), right.astype(np.float64)


def _from_root(scene: _Scene, layer: GraphLayer, root: str | None) -> tuple[str, str]:
    """Return where top nodes are expected, (batch or 1, nodes, 2), and log P there."""
    write = scene.write
    centre = scene.of_graph(layer.prior)
    if root is not None:
        centre = write("Add", centre, write("Unsqueeze", root, write.constant([1], np.int64)))
    spread = layer.spread.astype(np.float64)
    return centre, scene.of_graph(-np.log(2 * np.pi) - 2 * np.log(spread))


def _from_parents(scene: _Scene, layer: GraphLayer, above: GraphLayer, away: str) -> tuple[str, str]:
    """Return the same from how far the nodes above, (batch, nodes above, 2), are from their mean positions."""
    write, spread = scene.write, layer.spread.astype(np.float64)
    graphs, nodes, most = layer.parents.shape
    real, parent = layer.parents >= 0, np.maximum(layer.parents, 0)
    count = np.maximum(real.sum(-1), 1)
    sigma = np.take_along_axis(above.sigma.astype(np.float64), parent.reshape(graphs, -1), 1).reshape(parent.shape)
    sigma = np.where(real, sigma, 1.0)
    weight = np.where(real, 1 / (count[..., None] * sigma**2), 0.0)
    two = write.constant([2], np.int64)
    squared = write("ReduceSum", write("Mul", away, away), two, keepdims=1)
    triple = write("Concat", away, squared, axis=2)
    if scene.chosen is None:  # one product with a table that is nearly all zeros is faster than picking
        table = np.zeros((above.filter.shape[1], nodes))
        np.add.at(table, (parent[0], np.arange(nodes)[:, None]), weight[0])
        turned = write("Transpose", triple, perm=[0, 2, 1])
        summed = write("Transpose", write("MatMul", turned, write.constant(table)), perm=[0, 2, 1])
    else:
        picked = scene.of_nodes(triple, parent.reshape(graphs, -1))
        delta = write("Reshape", picked, write.constant([0, nodes, most, 3], np.int64))
        summed = write("MatMul", scene.of_graph(weight[:, :, None]), delta)
        summed = write("Reshape", summed, write.constant([0, nodes, 3], np.int64))
    pulled = write("Gather", summed, write.constant([0, 1], np.int64), axis=2)
    apart = write("Gather", summed, write.constant(2, np.int64), axis=2)
    shift = write("Mul", pulled, scene.of_graph(spread[..., None] ** 2))
    agreed = write("ReduceSum", write("Mul", shift, pulled), two, keepdims=0)  # |D|^2 / spread^2
    disagreement = write("Relu", write("Sub", apart, agreed))
    constant = scene.of_graph(-np.log(2 * np.pi) - (np.log(sigma**2) * real).sum(-1) / count)
    log_scale = write("Sub", constant, write("Mul", disagreement, write.constant(0.5)))
    return write("Add", scene.of_graph(layer.prior), shift), log_scale


def _layer(
    scene: _Scene, layer: GraphLayer, centre: str, log_scale: str, place: int, numbers: Sequence[Int64Array]
) -> tuple[manifest.GraphLayer, str]:
    """Append one layer; return its section and how far its nodes are from their mean positions."""
    write, count, name = scene.write, layer.filter.shape[1], f"{ROW}.{place}"
    here = scene.turned(centre)  # mirroring what is expected is as good as mirroring the cells
    position = write.output(f"{name}.position", TensorProto.FLOAT, count, 2)
    raw, fires = (_hard if scene.form == "hard" else _soft)(scene, layer, here, position)
    score = write("Add", raw, log_scale, out=write.output(f"{name}.score", TensorProto.FLOAT, count))
    threshold = scene.of_graph(np.where(layer.filter >= 0, layer.threshold, np.inf))
    present = write.output(f"{name}.present", TensorProto.BOOL, count)
    write("And", fires, write("GreaterOrEqual", score, threshold), out=present)
    _percentile(scene, layer, score, f"{name}.percentile")
    away = write("Sub", scene.turned(position), scene.of_graph(layer.mean))
    parents = [
        tuple(tuple(int(p) for p in node if p >= 0) for node in graph) if place else ((),) * count
        for graph in layer.parents
    ]
    section = manifest.GraphLayer(
        layer=layer.tensor,
        grid=layer.grid,
        position=position,
        score=score,
        percentile=f"{name}.percentile",
        present=present,
        node=tuple(tuple(map(int, np.pad(own, (0, count - len(own)), constant_values=-1))) for own in numbers),
        filter=tuple(tuple(map(int, graph)) for graph in layer.filter),
        parents=tuple(parents),
    )
    return section, away


def _distances(scene: _Scene, layer: GraphLayer, here: str) -> tuple[str, str]:
    """Return (cell - expected)^2 / (2 spread^2) along rows and along columns, (batch, nodes, cells)."""
    write = scene.write
    unit = np.sqrt(0.5) / layer.spread.astype(np.float64)[..., None]
    middle = write("Mul", here, scene.of_graph(unit))
    result = []
    for axis, cells in enumerate(places(layer, scene.size)):
        own = write("Gather", middle, write.constant([axis], np.int64), axis=2)
        away = write("Sub", scene.of_graph(cells * unit), own)
        result.append(write("Mul", away, away))
    return result[0], result[1]


def _hard(scene: _Scene, layer: GraphLayer, here: str, position: str) -> tuple[str, str]:
    """Write positions; return log S less log P at the expected place, and whether the filter fires there."""
    write, used = scene.write, np.unique(np.maximum(layer.filter, 0))
    rows, columns = places(layer, scene.size)
    two = write.constant([2], np.int64)
    # Not log F + log P but F P, so that no logarithm of whole maps is taken. With the nearest row and column at 1
    # nothing that could win is lost to underflow: some cell has LOG_EPS at least.
    near, least = [], []
    for distance in _distances(scene, layer, here):
        least.append(write("ReduceMin", distance, two, keepdims=1))
        near.append(write("Exp", write("Sub", least[-1], distance)))
    down, across = near
    values = _activation(scene, layer, used, plus=LOG_EPS)
    of_nodes = scene.of_nodes(values, np.searchsorted(used, np.maximum(layer.filter, 0)))
    cells = write("Mul", of_nodes, write("Unsqueeze", across, two))
    per_row = write("Mul", write("ReduceMax", cells, write.constant([3], np.int64), keepdims=0), down)
    row = write("ArgMax", per_row, axis=2, keepdims=1)
    in_row = write("GatherND", of_nodes, row, batch_dims=2)  # (batch, nodes, width)
    column = write("ArgMax", write("Mul", in_row, across), axis=2, keepdims=1)
    found = [write("Gather", write.constant(x), cell, axis=0) for x, cell in ((rows, row), (columns, column))]
    write("Concat", *found, axis=2, out=position)
    best = write("Sub", write("Log", write("ReduceMax", per_row, two, keepdims=1)), write("Add", *least))
    there = write("Squeeze", write("GatherElements", in_row, column, axis=2), two)
    return write("Squeeze", best, two), write("Greater", there, write.constant(2 * LOG_EPS))


def _soft(scene: _Scene, layer: GraphLayer, here: str, position: str) -> tuple[str, str]:
    """Do the same with the sums of F P, F P times the row and F P times the column."""
    write, used = scene.write, np.unique(np.maximum(layer.filter, 0))
    rows, columns = places(layer, scene.size)
    down, across = (
        write("Exp", write("Neg", write("Unsqueeze", distance, write.constant([2], np.int64))))
        for distance in _distances(scene, layer, here)
    )
    of_nodes = scene.of_nodes(_activation(scene, layer, used), np.searchsorted(used, np.maximum(layer.filter, 0)))
    left = write("Concat", down, write("Mul", down, write.constant(rows)), axis=2)
    weighted = write("Mul", write("MatMul", left, of_nodes), across)  # (batch, nodes, 1 and row, width)
    moments = write("MatMul", weighted, write.constant(np.stack((np.ones(len(columns)), columns), 1)))
    flat = write("Reshape", moments, write.constant([0, 0, 4], np.int64))  # mass, column, row, both
    floor = write.constant(LOG_EPS)
    mass = write("Gather", flat, write.constant([0], np.int64), axis=2)
    total = write("Add", mass, floor)
    moment = write("Gather", flat, write.constant([2, 1], np.int64), axis=2)
    write("Div", write("Add", moment, write("Mul", here, floor)), total, out=position)
    two = write.constant([2], np.int64)
    return write("Log", write("Squeeze", total, two)), write("Greater", write("Squeeze", mass, two), floor)


def _percentile(scene: _Scene, layer: GraphLayer, score: str, name: str) -> None:
    """Interpolate linearly between the quantiles: each of the twenty steps between them that is climbed counts five."""
    write = scene.write
    low = layer.quantiles[..., :-1].astype(np.float64)
    width = np.maximum(layer.quantiles[..., 1:] - low, _TINY)
    above = write("Sub", write("Unsqueeze", score, write.constant([2], np.int64)), scene.of_graph(low))
    step = 100 / (QUANTILES - 1)
    share = write("Clip", write("Mul", above, scene.of_graph(step / width)), write.constant(0.0), write.constant(step))
    name = write.output(name, TensorProto.FLOAT, layer.filter.shape[1])
    write("ReduceSum", share, write.constant([2], np.int64), keepdims=0, out=name)
