"""Say what an explanatory graph holds: its layers, nodes and parents, and the best nodes of each layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from analyzers.explanatory_graph import ExplanatoryGraph, GraphLayer

BEST = 5  # nodes shown of each layer


def describe_graph(graph: ExplanatoryGraph, best: int = BEST) -> dict[str, Any]:
    """Return what is worth knowing about a graph, ready for JSON; positions are (row, column) shares."""
    layers = [_layer(graph, layer, best) for layer in graph.layers]
    root = None
    if graph.root is not None:
        root = {
            "voters": int((graph.root.nodes >= 0).sum()),
            "displacements": len(graph.root.displacements),
            "largest": round(float(abs(graph.root.displacements).max()), 4),
            "mirrored": graph.root.mirrored,
        }
    return {
        "pictures": graph.pictures,
        "classes": list(graph.classes),
        "model": graph.model,
        "data": graph.data,
        "settings": graph.settings,
        "root": root,
        "layers": layers,
    }


def _layer(graph: ExplanatoryGraph, layer: GraphLayer, best: int) -> dict[str, Any]:
    real, parents = layer.filter >= 0, (layer.parents >= 0).sum(-1)
    order = np.argsort(np.where(real, -layer.rank, np.inf), axis=None, kind="stable")[: min(best, int(real.sum()))]
    places = [np.unravel_index(int(flat), real.shape) for flat in order]
    return {
        "tensor": layer.tensor,
        "cells": list(layer.grid.cells),
        "filters": len(np.unique(layer.filter[real])),
        "nodes": int(real.sum()),
        "parents": round(float(parents[real].mean()), 2) if real.any() else 0.0,
        "spread": round(float(np.median(layer.spread[real])), 4) if real.any() else None,
        "best": [_node(graph, layer, int(number), int(node)) for number, node in places],
    }


def _node(graph: ExplanatoryGraph, layer: GraphLayer, number: int, node: int) -> dict[str, Any]:
    shown = {
        "node": node,
        "filter": int(layer.filter[number, node]),
        "position": [round(float(share), 3) for share in layer.mean[number, node]],
        "rank": round(float(layer.rank[number, node]), 3),
        "threshold": round(float(layer.threshold[number, node]), 3),
        "parents": [int(parent) for parent in layer.parents[number, node] if parent >= 0],
    }
    return ({"class": graph.classes[number]} if graph.classes else {}) | shown


def graph_lines(graph: ExplanatoryGraph) -> list[str]:
    """Return the same as text, one entry a line."""
    about = describe_graph(graph)
    kind = f"{len(graph.classes)} classes, a graph each" if graph.classes else "one graph for all"
    root = about["root"]
    lines = [
        f"graph           {kind}, learned from {graph.pictures} pictures",
        f"model           {graph.model[:16] or 'unknown'}",
        f"data            {graph.data[:16] or 'unknown'}",
        "root            none (pictures cropped to the object)"
        if root is None
        else f"root            {root['voters']} voters, {root['displacements']} displacements up to"
        f" {root['largest']:.2f} of the side{', mirrored too' if root['mirrored'] else ''}",
    ]
    for layer in about["layers"]:
        lines.append(
            f"{layer['tensor']}: {layer['cells'][0]} x {layer['cells'][1]} cells, {layer['filters']} filters,"
            f" {layer['nodes']} nodes, {layer['parents']:g} parents each"
        )
        for node in layer["best"]:
            row, column = node["position"]
            of = f" of {node['class']}" if "class" in node else ""
            above = ", ".join(map(str, node["parents"][:6])) + (" ..." if len(node["parents"]) > 6 else "")
            lines.append(
                f"  node {node['node']}{of}: filter {node['filter']}, mostly at row {row:.2f}, column {column:.2f}"
                f"{', parents ' + above if above else ''}"
            )
    return lines
