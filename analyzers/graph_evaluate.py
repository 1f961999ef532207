"""Measure the explanatory graph that a model file carries: from file and pictures to the figures of a report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from analyzers.conv_maps import open_maps
from analyzers.explanatory_graph import ExplanatoryGraph
from analyzers.graph_gain import predictive_gain
from analyzers.graph_locate import HIT_RADIUS, SHOWN, Located, locate
from analyzers.graph_look import Maps
from analyzers.graph_prune import best_nodes, prune
from analyzers.graph_report import graph_report
from analyzers.manifest import ModelInput
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.progress import track

CLASS_PICTURES = 60  # of each class, for what needs all their maps at once
GAIN_NODES = 20  # of each layer and graph

_WAYS = ("nodes", "best_filter", "mean_of_marks")

Figure = dict[str, Any]


def evaluate_graph(
    model: ModelProto, graph: ExplanatoryGraph, picture: ModelInput, tested: Pictures, batch_size: int = 32
) -> dict[str, Figure]:
    """Return the figures of `explanatory_graph` in a report; those about parts only where some are marked.

    Args:
        model: computes the graph's conv maps.
        graph: what of the learned graph it computes.
        picture: what it takes.
        tested: labelled pictures of its classes.
        batch_size: pictures per run.
    """
    source = _Source(model, graph, picture, batch_size)
    figures: dict[str, Figure] = {}
    if tested.parts is not None and np.isfinite(tested.parts.xy).any():
        marked = tested.take(np.flatnonzero(np.isfinite(tested.parts.xy[..., 0]).sum(1)))
        maps = track(source.batches(marked), "explanatory graph", -(-len(marked) // batch_size))
        figures |= graph_report(graph, maps, marked, (picture.height, picture.width))
    return figures | _class_by_class(graph, source, tested, (picture.height, picture.width))


class _Source:
    """The graph's conv maps of pictures."""

    def __init__(self, model: ModelProto, graph: ExplanatoryGraph, picture: ModelInput, batch_size: int) -> None:
        self.session = open_maps(model, [layer.tensor for layer in graph.layers])
        self.picture, self.batch_size = picture, batch_size

    def batches(self, pictures: Pictures) -> Iterator[Maps]:
        for pixels in pictures.batches(self.picture.height, self.picture.width, self.batch_size):
            yield self.session.run({self.picture.tensor: to_model_input(pixels)})

    def whole(self, pictures: Pictures) -> Maps:
        every = list(self.batches(pictures))
        return {name: np.concatenate([maps[name] for maps in every]) for name in every[0]}


def _class_by_class(
    graph: ExplanatoryGraph, source: _Source, tested: Pictures, size: tuple[int, int]
) -> dict[str, Figure]:
    """Return what is measured on some pictures of each class, each class in its own graph: gain and localization."""
    best, _ = prune(graph, [best_nodes(layer, GAIN_NODES) for layer in graph.layers])
    gains, located, seen = [], [], 0
    for number in track(range(len(tested.names)), "gain and localization", len(tested.names)):
        rows = np.flatnonzero(tested.label == number)[:CLASS_PICTURES]
        if len(rows) < 4:  # half of them describe the other half
            continue
        pictures, whose = tested.take(rows), number if graph.classes else 0
        maps = source.whole(pictures)
        gains.append([layer["gain"] for layer in predictive_gain(best, maps, size, number=whose)])
        located.append(locate(graph, maps, pictures, size, whose))
        seen += len(rows)
    if not gains:
        return {}
    table = np.array(gains)
    layers = [
        {"layer": layer.tensor, "value": float(value)} for layer, value in zip(graph.layers, table.mean(0), strict=True)
    ]
    gain = _over_classes(table.mean(1), seen) | {"controls": {"shuffled_parents": 0.0}, "layers": layers}
    figures = {"predictive_gain": gain}
    tried = {part for one in located for part in one}
    if tried:
        figures["part_localization"] = _localization(located, tested)
    return figures


def _localization(located: list[dict[int, Located]], tested: Pictures) -> Figure:
    """Return the hit rate, mean over parts of the mean over classes, and the same of what it is compared with."""
    names = () if tested.parts is None else tested.parts.names
    parts = {}
    for part in sorted({part for one in located for part in one}):
        own = [one[part] for one in located if part in one]
        hits = {name: np.array([getattr(one, name) for one in own]) for name in _WAYS}
        parts[names[part]] = _over_classes(hits.pop("nodes"), sum(one.pictures for one in own)) | {
            "controls": {name: float(values.mean()) for name, values in hits.items()}
        }
    values = list(parts.values())
    return {
        "value": float(np.mean([one["value"] for one in values])),
        "n": sum(one["n"] for one in values),
        "standard_error": None,
        "controls": {name: float(np.mean([one["controls"][name] for one in values])) for name in values[0]["controls"]},
        "shown": SHOWN,
        "radius_share_of_diagonal": HIT_RADIUS,
        "parts": parts,
    }


def _over_classes(values: npt.NDArray[np.float64], n: int) -> Figure:
    error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return {"value": float(values.mean()), "n": n, "standard_error": error}
