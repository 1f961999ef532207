"""Do parents predict where a filter fires? A test without marks: bits that activation takes, right or wrong parents.

A filter's maps are described by a mixture of its mean map and its nodes' Gaussians. If the parents say something about
this very picture, the description is shorter than with those of another picture, which are as good in every other way.
"""

from __future__ import annotations

import numpy as np

from analyzers.explanatory_graph import ExplanatoryGraph
from analyzers.graph_look import FloatArray, Maps, activation, look, places

ROUNDS = 10


def predictive_gain(
    graph: ExplanatoryGraph, maps: Maps, size: tuple[int, int], *, number: int = 0
) -> list[dict[str, float]]:
    """Return bits for a unit of activation, layer by layer: `nodes`, `shuffled_parents` and their difference `gain`.

    The mean maps of the even pictures describe the odd ones and the other way round.

    Args:
        graph: learned graphs.
        maps: of each layer's tensor, (pictures, filters, height, width), of pictures it was not learned from.
        size: (height, width) of the model's input.
        number: which graph.
    """
    looked = {
        name: look(graph, maps, size, number=number, shuffled=shuffled)
        for name, shuffled in (("nodes", False), ("shuffled_parents", True))
    }
    result = []
    for place, layer in enumerate(graph.layers):
        rows, filters = places(layer, size)[0], layer.filter[number]
        bits, total = dict.fromkeys(looked, 0.0), 0.0
        for one in np.unique(filters[filters >= 0]):
            f, nodes = activation(layer, maps, int(one)), np.flatnonzero(filters == one)
            spread = layer.spread[number, nodes].astype(np.float64)
            for odd in (False, True):
                part = np.arange(len(f)) % 2 == odd
                static = f[~part].mean(0) + 1e-6
                total += float(f[part].sum())
                for name, found in looked.items():
                    centre, columns = found[place].centre[part][:, nodes], found[place].columns[part]
                    bits[name] += description_bits(f[part], rows, columns, (centre, spread), static)
        per_unit = {name: value / total if total else 0.0 for name, value in bits.items()}
        result.append(per_unit | {"gain": per_unit["shuffled_parents"] - per_unit["nodes"]})
    return result


def description_bits(
    maps: FloatArray, rows: FloatArray, columns: FloatArray, expected: tuple[FloatArray, FloatArray], static: FloatArray
) -> float:
    """Return the bits that one filter's maps take under a mixture of a static map and its nodes' Gaussians.

    The mixture's shares are fitted on these maps, whatever the parents.

    Args:
        maps: F, (pictures, height, width).
        rows: (height,) places of cells.
        columns: (pictures, width).
        expected: centres (pictures, nodes, 2) and spreads (nodes,).
        static: (height, width), > 0.
    """
    centre, spread = expected
    rate = -1 / (2 * spread[:, None] ** 2)
    y = np.exp((rows - centre[..., :1]) ** 2 * rate)
    x = np.exp((columns[:, None] - centre[..., 1:]) ** 2 * rate)
    density = y[..., :, None] * x[..., None, :]
    density /= np.maximum(density.sum((-2, -1), keepdims=True), 1e-30)
    whole = np.broadcast_to(static / static.sum(), (len(maps), 1, *static.shape))
    density = np.concatenate((whole, density), 1)
    share = np.full(density.shape[1], 1 / density.shape[1])
    for _ in range(ROUNDS):
        mixed = np.maximum(np.einsum("n,bnhw->bhw", share, density), 1e-30)
        share = share * np.einsum("bnhw,bhw->n", density, maps / mixed)
        share = share / max(float(share.sum()), 1e-30)
    mixed = np.maximum(np.einsum("n,bnhw->bhw", share, density), 1e-30)
    return float(-(maps * np.log2(mixed)).sum())
