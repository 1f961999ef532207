"""Look for a graph's nodes in feature maps, in numpy: for measuring graphs, and to check what model files compute.

`analyzers/explanatory_graph.py` defines what is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.explanatory_graph import LOG_EPS, ROOT_EPS, ExplanatoryGraph, GraphLayer, Root

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Maps = Mapping[str, npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class Looked:
    """Where the nodes of one layer were found; nodes that pad are at cell -1.

    Attributes:
        cell: (pictures, nodes) row-major.
        score: (pictures, nodes) log S.
        position: (pictures, nodes, 2) (row, column) in shares of the picture as it is.
        centre: (pictures, nodes, 2) where they were expected, in the picture as it is taken, mirrored or not.
        columns: (pictures, width) the cells' columns in the picture as it is taken.
    """

    cell: Int64Array
    score: FloatArray
    position: FloatArray
    centre: FloatArray
    columns: FloatArray


@dataclass(frozen=True, slots=True)
class _Expected:
    centre: FloatArray
    log_scale: FloatArray
    spread: FloatArray


def places(layer: GraphLayer, size: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Return the rows and the columns of a layer's cells, in shares of a picture of `size` (height, width)."""
    rows, columns = (
        (layer.grid.offset[axis] + np.arange(layer.grid.cells[axis]) * layer.grid.stride[axis]) / size[axis]
        for axis in (0, 1)
    )
    return rows, columns


def activation(layer: GraphLayer, maps: Maps, number: int) -> FloatArray:
    """Return F of one filter, (pictures, height, width)."""
    values = maps[layer.tensor][:, number].astype(np.float64)
    return np.asarray(np.maximum(values / layer.scale[number] - layer.floor[number], 0))


def look(
    graph: ExplanatoryGraph, maps: Maps, size: tuple[int, int], *, number: int = 0, shuffled: bool = False
) -> list[Looked]:
    """Find the nodes of graph `number` in pictures, from the top layer down.

    Args:
        graph: learned graphs.
        maps: of each layer's tensor, (pictures, filters, height, width).
        size: (height, width) of the model's input.
        number: which graph.
        shuffled: a control: let every node follow the root and the parents of another picture of these.

    Returns:
        Layer by layer, the top one first.
    """
    count = len(maps[graph.layers[0].tensor])
    other = np.roll(np.arange(count), max(1, count // 2)) if shuffled else np.arange(count)
    root, mirrored = np.zeros((count, 2)), np.zeros(count, np.bool_)
    if graph.root is not None:
        root, mirrored = root_of(graph.root, graph.layers[0], maps, size, number)
        root = root - graph.root.mean[number]
    found: list[Looked] = []
    away = np.zeros((count, 0, 2))
    for place, layer in enumerate(graph.layers):
        if place:
            expected = _from_parents(layer, graph.layers[place - 1], number, away[other])
        else:
            expected = _from_root(layer, number, root[other])
        rows, columns = places(layer, size)
        taken = np.where(mirrored[:, None], 1 - columns, columns)
        cell, score = _best_cells(layer, maps, number, expected, rows, taken)
        row, column = np.divmod(np.maximum(cell, 0), len(columns))
        away = np.stack((rows[row], np.take_along_axis(taken, column, 1)), -1) - layer.mean[number]
        position = np.stack((rows[row], columns[column]), -1)
        found.append(Looked(cell, score, position, expected.centre, taken))
    return found


def root_of(
    root: Root, top: GraphLayer, maps: Maps, size: tuple[int, int], number: int = 0
) -> tuple[FloatArray, BoolArray]:
    """Return each picture's displacement (pictures, 2), not less its mean, and whether it is taken as mirrored."""
    rows, columns = places(top, size)
    hypotheses = (columns, 1 - columns) if root.mirrored else (columns,)
    total = np.zeros((len(maps[top.tensor]), len(hypotheses) * len(root.displacements)))
    for node in root.nodes[number][root.nodes[number] >= 0]:
        f, at = activation(top, maps, int(top.filter[number, node])), top.prior[number, node] + root.displacements
        y = np.exp(-((rows - at[:, :1]) ** 2) / (2 * root.sigma**2))
        near = [np.exp(-((c - at[:, 1:]) ** 2) / (2 * root.sigma**2)) for c in hypotheses]
        votes = [np.einsum("ph,bhw,pw->bp", y, f, x, optimize=True) for x in near]
        total = total + np.log(ROOT_EPS + np.concatenate(votes, 1))
    best = total.argmax(1)
    return root.displacements[best % len(root.displacements)].astype(np.float64), best >= len(root.displacements)


def _from_root(layer: GraphLayer, number: int, root: FloatArray) -> _Expected:
    spread = layer.spread[number].astype(np.float64)
    scale = np.broadcast_to(-np.log(2 * np.pi) - 2 * np.log(spread), (len(root), len(spread)))
    return _Expected(layer.prior[number] + root[:, None], scale, spread)


def _from_parents(layer: GraphLayer, above: GraphLayer, number: int, away: FloatArray) -> _Expected:
    """`away` is (pictures, nodes above, 2): how far those are from their mean positions."""
    parents, spread = layer.parents[number], layer.spread[number].astype(np.float64)
    real = parents >= 0
    count = np.maximum(real.sum(1), 1)
    sigma = np.where(real, above.sigma[number][np.maximum(parents, 0)], 1.0).astype(np.float64)
    weight = np.where(real, 1 / (count[:, None] * sigma**2), 0)
    delta = away[:, np.maximum(parents, 0)]  # (pictures, nodes, M, 2)
    shift = (weight[..., None] * delta).sum(2) * spread[:, None] ** 2
    disagreement = (weight * (delta**2).sum(-1)).sum(2) - (shift**2).sum(-1) / spread**2
    constant = -np.log(2 * np.pi) - (np.log(sigma**2) * real).sum(1) / count
    return _Expected(layer.prior[number] + shift, constant - np.maximum(disagreement, 0) / 2, spread)


def _best_cells(
    layer: GraphLayer, maps: Maps, number: int, expected: _Expected, rows: FloatArray, columns: FloatArray
) -> tuple[Int64Array, FloatArray]:
    filters = layer.filter[number]
    cell = np.full((len(columns), len(filters)), -1, np.int64)
    score = np.full(cell.shape, -np.inf)
    rate = -1 / (2 * expected.spread**2)
    for one in np.unique(filters[filters >= 0]):
        nodes = np.flatnonzero(filters == one)
        height = np.log(activation(layer, maps, int(one)) + LOG_EPS)
        centre = expected.centre[:, nodes]
        y = (rows - centre[..., :1]) ** 2 * rate[nodes, None]
        x = (columns[:, None] - centre[..., 1:]) ** 2 * rate[nodes, None]
        per_row = (height[:, None] + x[:, :, None]).max(-1) + y
        row = per_row.argmax(-1)
        chosen = np.take_along_axis(height, row[..., None], 1) + x
        cell[:, nodes] = row * columns.shape[1] + chosen.argmax(-1)
        score[:, nodes] = per_row.max(-1) + expected.log_scale[:, nodes]
    return cell, score
