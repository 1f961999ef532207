"""`explanatory_graph` in an answer: from a model's raw outputs to the nodes that are present in a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers import explanation, manifest
from analyzers.geometry import Frame


def decode(
    section: manifest.ExplanatoryGraph,
    classes: tuple[str, ...],
    outputs: Mapping[str, npt.NDArray[Any]],
    row: int,
    frame: Frame,
    *,
    min_percentile: float,
    max_nodes: int,
) -> explanation.ExplanatoryGraph:
    """Return the nodes that are present in picture `row` of the batch, of each layer the highest percentiles first.

    Where several nodes of a filter are within half a cell of each other, only the one with the best score is there: it
    explains the place better than its siblings.

    Args:
        section: what the outputs mean.
        classes: names of the model's classes.
        outputs: by name, batch first.
        row: which picture.
        frame: the picture that positions refer to.
        min_percentile: nodes below it are left out.
        max_nodes: of each layer.
    """
    number = 0 if section.graph is None else int(outputs[section.graph][row])
    nodes: list[explanation.Node] = []
    above: dict[int, int] = {}  # in the layer above, the places of nodes that are in the answer, and their numbers
    for place, layer in enumerate(section.layers):
        own = _present(layer, number, outputs, row, min_percentile, max_nodes)
        position, score, percentile = (outputs[t][row] for t in (layer.position, layer.score, layer.percentile))
        nodes.extend(
            explanation.Node(
                layer=place,
                node=layer.node[number][node],
                filter=layer.filter[number][node],
                x=float(np.clip(position[node, 1], 0, 1)) * frame.width,
                y=float(np.clip(position[node, 0], 0, 1)) * frame.height,
                score=float(score[node]),
                percentile=float(percentile[node]),
                parents=tuple(above[parent] for parent in layer.parents[number][node] if parent in above),
            )
            for node in own
        )
        above = {node: layer.node[number][node] for node in own}
    down, right = (0.0, 0.0) if section.displacement is None else map(float, outputs[section.displacement][row])
    return explanation.ExplanatoryGraph(
        nodes=tuple(nodes),
        layers=tuple(layer.layer for layer in section.layers),
        class_name="" if section.graph is None else classes[number],
        right=right * frame.width,
        down=down * frame.height,
        mirrored=section.mirrored is not None and bool(outputs[section.mirrored][row]),
    )


def _present(
    layer: manifest.GraphLayer,
    number: int,
    outputs: Mapping[str, npt.NDArray[Any]],
    row: int,
    min_percentile: float,
    max_nodes: int,
) -> list[int]:
    percentile, score, position = (outputs[t][row] for t in (layer.percentile, layer.score, layer.position))
    filters = np.array(layer.filter[number])
    present = np.flatnonzero(outputs[layer.present][row] & (filters >= 0))
    half = 0.5 / np.array(layer.grid.cells)
    kept: list[int] = []
    for node in present[np.lexsort((-score[present], -percentile[present]))]:
        if percentile[node] < min_percentile or len(kept) == max_nodes:
            break
        better = (score[present] > score[node]) | ((score[present] == score[node]) & (present < node))
        siblings = present[(filters[present] == filters[node]) & better]
        if not (abs(position[siblings] - position[node]) < half).all(1).any():
            kept.append(int(node))
    return kept
