"""Keep a graph's best nodes and what they follow: their parents, the parents of those, and the root's voters.

Nothing that is kept changes: a node depends on its ancestors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.explanatory_graph import ExplanatoryGraph, GraphLayer

Int64Array = npt.NDArray[np.int64]

_PADS = {"filter": -1, "parents": -1, "top_picture": -1, "sigma": 1, "spread": 1}
_WHOLE = ("tensor", "grid", "scale", "floor")


def best_nodes(layer: GraphLayer, most: int) -> list[Int64Array]:
    """Return the numbers of each graph's `most` best nodes, best first."""
    return [
        np.argsort(np.where(filters >= 0, -rank, np.inf), kind="stable")[: min(most, int((filters >= 0).sum()))]
        for filters, rank in zip(layer.filter, layer.rank, strict=True)
    ]


def prune(
    graph: ExplanatoryGraph, wanted: Sequence[Sequence[Int64Array]]
) -> tuple[ExplanatoryGraph, list[list[Int64Array]]]:
    """Return the graph of the wanted nodes and their ancestors.

    Args:
        graph: learned graphs.
        wanted: for each layer, the top one first, the numbers of the nodes of each graph.

    Returns:
        The smaller graph, and for each layer and graph the numbers that its nodes had.
    """
    graphs = range(len(graph.layers[0].filter))
    kept: list[list[Int64Array]] = []
    needed = [np.zeros(0, np.int64) for _ in graphs]
    for place in reversed(range(len(graph.layers))):
        layer = graph.layers[place]
        if not place and graph.root is not None:
            needed = [
                np.concatenate([n, voters[voters >= 0]]) for n, voters in zip(needed, graph.root.nodes, strict=True)
            ]
        here = [np.unique(np.concatenate([needed[g], wanted[place][g]])) for g in graphs]
        parents = [layer.parents[g, here[g]].ravel() for g in graphs]
        needed = [np.unique(numbers[numbers >= 0]) for numbers in parents]
        kept.insert(0, here)
    layers = []
    for place, layer in enumerate(graph.layers):
        small = _taken(layer, kept[place])
        if place:
            renumbered = _renumbered(small.parents, kept[place - 1], graph.layers[place - 1].filter.shape[1])
            small = replace(small, parents=renumbered)
        layers.append(small)
    root = graph.root
    if root is not None:
        root = replace(root, nodes=_renumbered(root.nodes, kept[0], graph.layers[0].filter.shape[1]))
    return replace(graph, layers=tuple(layers), root=root), kept


def _taken(layer: GraphLayer, kept: Sequence[Int64Array]) -> GraphLayer:
    longest = max(map(len, kept))
    arrays: dict[str, Any] = {}
    for field in fields(GraphLayer):
        if field.name in _WHOLE:
            continue
        array = getattr(layer, field.name)
        whole = np.full((len(kept), longest, *array.shape[2:]), _PADS.get(field.name, 0), array.dtype)
        for number, nodes in enumerate(kept):
            whole[number, : len(nodes)] = array[number, nodes]
        arrays[field.name] = whole
    return replace(layer, **arrays)


def _renumbered(numbers: Int64Array, kept: Sequence[Int64Array], before: int) -> Int64Array:
    """Return old node numbers (graphs, ...) as new ones; -1 stays."""
    result = np.full(numbers.shape, -1, np.int64)
    for number, nodes in enumerate(kept):
        place = np.full(before + 1, -1, np.int64)  # the last takes -1
        place[nodes] = np.arange(len(nodes))
        result[number] = place[numbers[number]]
    return result
