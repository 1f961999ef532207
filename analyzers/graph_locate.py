"""Locate a part from a few marked pictures of a class, and what that is to be compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzers.explanatory_graph import ExplanatoryGraph
from analyzers.graph_look import Maps, look, places
from analyzers.node_metrics import locate_part, percentiles
from analyzers.pictures import Pictures

SHOWN = 3  # marked pictures that a part is learned from
HIT_RADIUS = 0.1  # share of the diagonal
_MINIMUM = 5  # pictures to find it in

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Located:
    """How often one part of one class was found, shares of the pictures that were not shown.

    Attributes:
        nodes: by nodes that keep their displacement from the part (`node_metrics.locate_part`).
        best_filter: by the filter whose highest cell keeps its displacement best.
        mean_of_marks: at the mean place of the marks.
        pictures: how many there were.
    """

    nodes: float
    best_filter: float
    mean_of_marks: float
    pictures: int


def locate(
    graph: ExplanatoryGraph, maps: Maps, pictures: Pictures, size: tuple[int, int], number: int = 0
) -> dict[int, Located]:
    """Show the first three marked pictures of each part and look for it in the others.

    Args:
        graph: learned graphs.
        maps: of each layer's tensor, (pictures, filters, height, width).
        pictures: those of one class, with marks.
        size: (height, width) of the model's input.
        number: which graph.

    Returns:
        By the part's number; parts with too few marks are left out.
    """
    if pictures.parts is None:
        return {}
    scale = np.array(size, np.float64)
    found = look(graph, maps, size, number=number)
    real = [np.flatnonzero(layer.filter[number] >= 0) for layer in graph.layers]
    position = np.concatenate([one.position[:, own] for one, own in zip(found, real, strict=True)], 1)
    score = np.concatenate([one.score[:, own] for one, own in zip(found, real, strict=True)], 1)
    quantiles = np.concatenate([layer.quantiles[number, own] for layer, own in zip(graph.layers, real, strict=True)])
    usual = score - quantiles.mean(1)
    share, peaks = percentiles(score, quantiles), _peaks(graph, maps, size)
    result = {}
    for part in range(len(pictures.parts.names)):
        mark = pictures.parts.xy[:, part, ::-1].astype(np.float64)  # (row, column)
        marked = np.flatnonzero(np.isfinite(mark).all(1))
        shown, asked = marked[:SHOWN], marked[SHOWN:]
        if len(asked) < _MINIMUM:
            continue
        kept = mark[shown, None] - peaks[shown]
        steady = int(kept.std(0).sum(1).argmin())
        guesses = {
            "nodes": locate_part(position[shown], usual[shown], mark[shown], position[asked], share[asked]),
            "best_filter": peaks[asked, steady] + kept[:, steady].mean(0),
            "mean_of_marks": np.tile(mark[shown].mean(0), (len(asked), 1)),
        }
        near = HIT_RADIUS * float(np.hypot(*size))
        hits = {
            name: float((np.linalg.norm((guess - mark[asked]) * scale, axis=1) <= near).mean())
            for name, guess in guesses.items()
        }
        result[part] = Located(**hits, pictures=len(asked))
    return result


def _peaks(graph: ExplanatoryGraph, maps: Maps, size: tuple[int, int]) -> FloatArray:
    """Return the highest cell of every filter of all layers, (pictures, filters, 2) in shares of the picture."""
    every = []
    for layer in graph.layers:
        rows, columns = places(layer, size)
        cell = maps[layer.tensor].reshape(*maps[layer.tensor].shape[:2], -1).argmax(2)
        row, column = np.divmod(cell, len(columns))
        every.append(np.stack((rows[row], columns[column]), -1))
    return np.concatenate(every, 1)
