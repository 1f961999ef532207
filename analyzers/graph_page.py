"""A page of an explanatory graph: each layer's best nodes with the patches of the pictures that they fit best."""

from __future__ import annotations

from typing import Any

import numpy as np

from analyzers.errors import DataError
from analyzers.explanatory_graph import ExplanatoryGraph, GraphLayer
from analyzers.graph_prune import best_nodes
from analyzers.page import inlined, render
from analyzers.pictures import Pictures
from analyzers.pixels import UInt8Array
from analyzers.progress import track

NODES, PATCHES = 12, 8
PATCH = 70 / 224  # share of the side, as in arXiv 1708.01785
_SIDE = 448  # that pictures are brought to before a patch is cut out


def graph_page(
    graph: ExplanatoryGraph, pictures: Pictures, *, title: str, nodes: int = NODES, patches: int = PATCHES
) -> bytes:
    """Return a self-contained HTML page, about 7 kB a patch.

    Args:
        graph: a learned graph.
        pictures: those that it was learned from, in the same order.
        title: of the page.
        nodes: of each layer, the best of each graph.
        patches: of each node.

    Raises:
        DataError: the pictures are others.
    """
    if pictures.fingerprint() != graph.data:
        raise DataError(
            "these are not the pictures that the graph was learned from, so its top pictures cannot be shown;"
            " give the same data and split"
        )
    chosen = [_best(layer, nodes) for layer in graph.layers]
    total = sum(map(len, chosen))
    progress = iter(track(range(total), "patches", total))
    layers = []
    for place, (layer, best) in enumerate(zip(graph.layers, chosen, strict=True)):
        shown = []
        for number, node in best:
            next(progress)
            shown.append(_node(graph, place, number, node, chosen, pictures, patches))
        height, width = layer.grid.cells
        layers.append(
            {
                "name": layer.tensor,
                "cells": f"{height} x {width}",
                "nodes": int((layer.filter >= 0).sum()),
                "best": shown,
            }
        )
    for _ in progress:
        pass
    return render(
        "graph.html",
        title=title,
        whose=f"Graphs of {len(graph.classes)} classes" if graph.classes else "One graph for all pictures",
        pictures=graph.pictures,
        share=f"{PATCH:.0%}",
        layers=layers,
    )


def _best(layer: GraphLayer, nodes: int) -> list[tuple[int, int]]:
    """Return graph and number of the best nodes, from each graph equally many and one at least."""
    each = -(-nodes // len(layer.filter))
    return [(number, int(node)) for number, own in enumerate(best_nodes(layer, each)) for node in own]


def _node(
    graph: ExplanatoryGraph,
    place: int,
    number: int,
    node: int,
    chosen: list[list[tuple[int, int]]],
    pictures: Pictures,
    patches: int,
) -> dict[str, Any]:
    layer = graph.layers[place]
    fits = [k for k in range(layer.top_picture.shape[2]) if layer.top_picture[number, node, k] >= 0][:patches]
    rows = layer.top_picture[number, node, fits]
    decoded = pictures.take(rows).decoded(_SIDE, _SIDE)
    return {
        "number": node,
        "anchor": f"{place}-{number}-{node}",
        "category": graph.classes[number] if graph.classes else "",
        "filter": int(layer.filter[number, node]),
        "row": f"{layer.mean[number, node, 0]:.2f}",
        "column": f"{layer.mean[number, node, 1]:.2f}",
        "parents": [
            {
                "number": int(parent),
                "anchor": f"{place - 1}-{number}-{int(parent)}",
                "shown": place > 0 and (number, int(parent)) in chosen[place - 1],
            }
            for parent in layer.parents[number, node]
            if parent >= 0
        ],
        "patches": [
            {
                "source": inlined(_patch(pixels, *layer.top_position[number, node, k])),
                "name": pictures.names[pictures.label[row]],
                "score": f"{layer.top_score[number, node, k]:.2f}",
            }
            for k, row, pixels in zip(fits, rows, decoded, strict=True)
        ],
    }


def _patch(pixels: UInt8Array, row: float, column: float) -> UInt8Array:
    """Cut a patch out, moved inwards where it would leave the picture."""
    side = round(PATCH * _SIDE)
    top, left = (int(np.clip(round(share * _SIDE - side / 2), 0, _SIDE - side)) for share in (row, column))
    return pixels[top : top + side, left : left + side]
