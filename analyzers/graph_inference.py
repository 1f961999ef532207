"""Find an explanatory graph's nodes inside an ONNX model, in the run that predicts, with standard operators alone.

`analyzers/explanatory_graph.py` defines what is computed. Two forms of it:
    hard: a node is at its best cell, its score the largest log(F + LOG_EPS) + log P over cells.
    soft: it is at the mean of all cells weighted by F P, between cells, and its score is the log of that sum, to which
        LOG_EPS of F at the expected place is added, so that a node whose map is empty is there.
A node is present if its filter fires there (F > LOG_EPS; soft: the sum counts instead), its score reaches its threshold
and no other node of its filter has a better score at the same cell (soft: within half a cell).
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

_FIRES = float(np.log(2 * LOG_EPS))  # of log(F + LOG_EPS)
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
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype), name))
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
        mirrored: bool (batch, 1), whether a picture is taken as mirrored; None where that is not tried.
        form: of the inference.
    """

    write: _Writer
    chosen: str | None
    size: tuple[int, int]
    mirrored: str | None
    form: Form

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

    def mirrored_back(self, columns: str) -> str:
        """Return 1 - columns (batch, nodes or cells) where the picture is taken as mirrored."""
        if self.mirrored is None:
            return columns
        return self.write("Where", self.mirrored, self.write("Sub", self.write.constant(1.0), columns), columns)


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
    scene = _Scene(write, chosen, size, None, form)
    maps = [_maps(scene, layer) for layer in graph.layers]
    root, mirrored = None, None
    if graph.root is not None:
        root, mirrored = _root(scene, graph.root, graph.layers[0], maps[0])
        scene = _Scene(write, chosen, size, mirrored, form)
    sections, away = [], None
    for place, layer in enumerate(graph.layers):
        if away is None:
            centre, log_scale = _from_root(scene, layer, root)
        else:
            centre, log_scale = _from_parents(scene, layer, graph.layers[place - 1], away)
        section, away = _layer(scene, layer, maps[place], centre, log_scale, place, numbers[place])
        sections.append(section)
    return manifest.ExplanatoryGraph(
        layers=tuple(sections),
        form=form,
        graph=f"{ROW}.graph" if graph.classes else None,
        displacement=None if root is None else f"{ROW}.displacement",
        mirrored=None if mirrored is None else f"{ROW}.mirrored",
    )


@dataclass(frozen=True, slots=True)
class _Maps:
    """F of the filters that nodes belong to, (batch, filters, height, width), and each node's place among them."""

    activation: str
    slot: Int64Array


def _maps(scene: _Scene, layer: GraphLayer) -> _Maps:
    write, used = scene.write, np.unique(np.maximum(layer.filter, 0))
    picked = layer.tensor
    if len(used) < len(layer.scale):
        picked = write("Gather", picked, write.constant(used, np.int64), axis=1)
    share = write("Div", picked, write.constant(layer.scale[used][:, None, None]))
    above = write("Sub", share, write.constant(layer.floor[used][:, None, None])) if layer.floor.any() else share
    return _Maps(write("Relu", above), np.searchsorted(used, np.maximum(layer.filter, 0)))


def _root(scene: _Scene, root: Root, top: GraphLayer, maps: _Maps) -> tuple[str, str | None]:
    """Return the root's displacement less its mean, (batch, 2), and whether pictures are taken as mirrored."""
    write, sigma = scene.write, root.sigma
    rows, columns = places(top, scene.size)
    down, right = _axes(root)
    real, node = root.nodes >= 0, np.maximum(root.nodes, 0)
    prior = np.take_along_axis(top.prior, node[..., None], 1).astype(np.float64)  # (graphs, voters, 2)
    hypotheses = (columns, 1 - columns) if root.mirrored else (columns,)

    def near(cells: npt.NDArray[np.float64], axis: int, tried: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(graphs, voters, tried, cells); 0 for voters that pad, so that they say the same of every displacement."""
        away = cells - (prior[..., axis, None] + tried)[..., None]
        return np.asarray(np.exp(-(away**2) / (2 * sigma**2)) * real[..., None, None])

    vertical = scene.of_graph(near(rows, 0, down))
    across = np.concatenate([near(cells, 1, right) for cells in hypotheses], 2)
    horizontal = scene.of_graph(across.swapaxes(2, 3))
    voters = scene.of_nodes(maps.activation, np.take_along_axis(maps.slot, node, 1))
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
    return away, write("Unsqueeze", mirrored, write.constant([1], np.int64))


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
    real, parent = layer.parents >= 0, np.maximum(layer.parents, 0).reshape(graphs, -1)
    count = np.maximum(real.sum(-1), 1)
    sigma = np.take_along_axis(above.sigma.astype(np.float64), parent, 1).reshape(layer.parents.shape)
    sigma = np.where(real, sigma, 1.0)
    weight = np.where(real, 1 / (count[..., None] * sigma**2), 0.0)
    of_parents = scene.of_nodes(away, parent)  # (batch, nodes x parents, 2)
    delta = write("Reshape", of_parents, write.constant([0, nodes, most, 2], np.int64))
    weighted = write("Mul", delta, scene.of_graph(weight[..., None]))
    axis = write.constant([2], np.int64)
    pulled = write("ReduceSum", weighted, axis, keepdims=0)
    shift = write("Mul", pulled, scene.of_graph(spread[..., None] ** 2))
    apart = write("ReduceSum", write("Mul", weighted, delta), write.constant([2, 3], np.int64), keepdims=0)
    agreed = write("ReduceSum", write("Mul", shift, pulled), axis, keepdims=0)  # |D|^2 / spread^2
    disagreement = write("Relu", write("Sub", apart, agreed))
    constant = scene.of_graph(-np.log(2 * np.pi) - (np.log(sigma**2) * real).sum(-1) / count)
    log_scale = write("Sub", constant, write("Mul", disagreement, write.constant(0.5)))
    return write("Add", scene.of_graph(layer.prior), shift), log_scale


def _layer(
    scene: _Scene,
    layer: GraphLayer,
    maps: _Maps,
    centre: str,
    log_scale: str,
    place: int,
    numbers: Sequence[Int64Array],
) -> tuple[manifest.GraphLayer, str]:
    """Append one layer; return its section and how far its nodes are from their mean positions."""
    write, last = scene.write, scene.write.constant([-1], np.int64)
    rows, columns = places(layer, scene.size)
    rate = scene.of_graph(-0.5 / layer.spread.astype(np.float64)[..., None] ** 2)
    expected = [write("Gather", centre, write.constant([axis], np.int64), axis=2) for axis in (0, 1)]
    taken = scene.mirrored_back(write.constant(columns[None]))
    if scene.mirrored is not None:
        taken = write("Unsqueeze", taken, write.constant([1], np.int64))
    gaussians = []
    for cells, middle in ((write.constant(rows), expected[0]), (taken, expected[1])):
        away = write("Sub", cells, middle)
        gaussians.append(write("Mul", write("Mul", away, away), rate))  # (batch, nodes, cells)
    of = _hard if scene.form == "hard" else _soft
    found = of(scene, maps, gaussians, expected, taken, rows, columns)
    count = layer.filter.shape[1]
    name = f"{ROW}.{place}"
    score = write("Add", found.score, log_scale, out=write.output(f"{name}.score", TensorProto.FLOAT, count))
    back = scene.mirrored_back(found.column) if scene.form == "soft" else found.column
    mirrored = found.column if scene.form == "soft" else scene.mirrored_back(found.column)
    pairs = [[write("Unsqueeze", axis, last) for axis in (found.row, column)] for column in (back, mirrored)]
    position = write.output(f"{name}.position", TensorProto.FLOAT, count, 2)
    write("Concat", *pairs[0], axis=2, out=position)
    away = write("Sub", write("Concat", *pairs[1], axis=2), scene.of_graph(layer.mean))
    _present(scene, layer, found, score, (rows, columns), f"{name}.present")
    _percentile(scene, layer, score, f"{name}.percentile")
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
        present=f"{name}.present",
        node=tuple(tuple(map(int, np.pad(own, (0, count - len(own)), constant_values=-1))) for own in numbers),
        filter=tuple(tuple(map(int, graph)) for graph in layer.filter),
        parents=tuple(parents),
    )
    return section, away


@dataclass(frozen=True, slots=True)
class _Found:
    """What a form finds, each (batch, nodes).

    Attributes:
        row: position.
        column: position; of the hard form in the picture as it is, of the soft one as it is taken.
        score: log S less log P at the expected place.
        fires: whether there is anything there.
    """

    row: str
    column: str
    score: str
    fires: str


def _hard(
    scene: _Scene,
    maps: _Maps,
    gaussians: list[str],
    expected: list[str],
    taken: str,
    rows: npt.NDArray[np.float64],
    columns: npt.NDArray[np.float64],
) -> _Found:
    write = scene.write
    height = write("Log", write("Add", maps.activation, write.constant(LOG_EPS)))
    across = write("Unsqueeze", gaussians[1], write.constant([2], np.int64))
    of_nodes = scene.of_nodes(height, maps.slot)  # (batch, nodes, height, width)
    cells = write("Add", of_nodes, across)
    per_row = write("ReduceMax", cells, write.constant([3], np.int64), keepdims=0)
    per_row = write("Add", per_row, gaussians[0])
    row = write("ArgMax", per_row, axis=2, keepdims=1)
    in_row = write("GatherND", of_nodes, row, batch_dims=2)  # (batch, nodes, width)
    column = write("ArgMax", write("Add", in_row, gaussians[1]), axis=2, keepdims=1)
    here = write("GatherElements", in_row, column, axis=2)
    two = write.constant([2], np.int64)
    row, column, here = (write("Squeeze", name, two) for name in (row, column, here))
    return _Found(
        row=write("Gather", write.constant(rows), row, axis=0),
        column=write("Gather", write.constant(columns), column, axis=0),
        score=write("ReduceMax", per_row, two, keepdims=0),
        fires=write("Greater", here, write.constant(_FIRES)),
    )


def _soft(
    scene: _Scene,
    maps: _Maps,
    gaussians: list[str],
    expected: list[str],
    taken: str,
    rows: npt.NDArray[np.float64],
    columns: npt.NDArray[np.float64],
) -> _Found:
    """Sum F P, F P times the row and F P times the column in two products of small matrices."""
    write = scene.write
    two, three = write.constant([2], np.int64), write.constant([3], np.int64)
    down, across = (write("Exp", gaussian) for gaussian in gaussians)
    left = write(
        "Concat", *(write("Unsqueeze", x, two) for x in (down, write("Mul", down, write.constant(rows)))), axis=2
    )
    right = write("Concat", *(write("Unsqueeze", x, three) for x in (across, write("Mul", across, taken))), axis=3)
    moments = write("MatMul", write("MatMul", left, scene.of_nodes(maps.activation, maps.slot)), right)
    flat = write("Reshape", moments, write.constant([0, 0, 4], np.int64))  # mass, column, row, both
    mass, column, row = (write("Gather", flat, write.constant([k], np.int64), axis=2) for k in range(3))
    floor = write.constant(LOG_EPS)
    total = write("Add", mass, floor)
    places_found = [
        write("Squeeze", write("Div", write("Add", moment, write("Mul", centre, floor)), total), two)
        for moment, centre in ((row, expected[0]), (column, expected[1]))
    ]
    return _Found(
        row=places_found[0],
        column=places_found[1],
        score=write("Squeeze", write("Log", total), two),
        fires=write("Squeeze", write("Greater", mass, floor), two),
    )


def _present(
    scene: _Scene,
    layer: GraphLayer,
    found: _Found,
    score: str,
    cells: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    name: str,
) -> None:
    write, count = scene.write, layer.filter.shape[1]
    threshold = np.where(layer.filter >= 0, layer.threshold, np.inf)
    present = write("And", found.fires, write("GreaterOrEqual", score, scene.of_graph(threshold)))
    name = write.output(name, TensorProto.BOOL, count)
    siblings = _siblings(layer)
    if not siblings.shape[2]:
        write("Identity", present, out=name)
        return
    shape = write.constant([0, count, siblings.shape[2]], np.int64)
    flat, last = siblings.reshape(len(siblings), -1), write.constant([2], np.int64)

    def against(own: str) -> tuple[str, str]:
        return write("Reshape", scene.of_nodes(own, flat), shape), write("Unsqueeze", own, last)

    beaten = write("Greater", *against(score))
    for axis, places_of in zip((found.row, found.column), cells, strict=True):
        half = abs(places_of[1] - places_of[0]) / 2 if len(places_of) > 1 else 1.0
        apart = write("Abs", write("Sub", *against(axis)))
        beaten = write("And", beaten, write("Less", apart, write.constant(half)))
    number = write("ReduceMax", write("Cast", beaten, to=TensorProto.FLOAT), last, keepdims=0)
    write("And", present, write("Less", number, write.constant(0.5)), out=name)


def _siblings(layer: GraphLayer) -> Int64Array:
    """Return for each node the other nodes of its filter, (graphs, nodes, most); a node itself pads."""
    graphs, nodes = layer.filter.shape
    others = [
        [np.flatnonzero((graph == f) & (np.arange(nodes) != node)) if f >= 0 else () for node, f in enumerate(graph)]
        for graph in layer.filter
    ]
    most = max((len(own) for graph in others for own in graph), default=0)
    table = np.tile(np.arange(nodes)[:, None], (graphs, 1, most))
    for g, graph in enumerate(others):
        for node, own in enumerate(graph):
            table[g, node, : len(own)] = own
    return table.astype(np.int64)


def _percentile(scene: _Scene, layer: GraphLayer, score: str, name: str) -> None:
    """Interpolate linearly between the quantiles: each of the twenty steps between them that is climbed counts five."""
    write, steps = scene.write, QUANTILES - 1
    low = layer.quantiles[..., :-1].astype(np.float64)
    width = np.maximum(layer.quantiles[..., 1:] - low, _TINY)
    above = write("Sub", write("Unsqueeze", score, write.constant([2], np.int64)), scene.of_graph(low))
    share = write("Clip", write("Mul", above, scene.of_graph(1 / width)), write.constant(0.0), write.constant(1.0))
    total = write("ReduceSum", share, write.constant([2], np.int64), keepdims=0)
    name = write.output(name, TensorProto.FLOAT, layer.filter.shape[1])
    write("Mul", total, write.constant(100 / steps), out=name)
