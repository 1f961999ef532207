"""The figures of an explanatory graph in a report: nodes against raw filter peaks and against wrong parents.

    figures = graph_report(graph, maps, marked, size)
    report["explanatory_graph"] = figures

`maps` yields, batch by batch over `marked` in order, the graph's conv maps by tensor; `marked` are pictures with part
marks and the labels of the graph's classes. Each figure is the mean over layers of the mean over a layer's best nodes,
each measured in the pictures of its own class: the class whose graph it belongs to, or on which it is found best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.explanatory_graph import ExplanatoryGraph, GraphLayer
from analyzers.graph_look import Looked, Maps, look, places
from analyzers.graph_prune import best_nodes, prune
from analyzers.metrics import (
    FloatArray,
    Int64Array,
    best_landmark,
    location_instability,
    mean_known,
    own_category,
)
from analyzers.metrics import tracking_ratio as ratio_table
from analyzers.node_metrics import MIN_PICTURES, RADIUS, TOP_CIRCLES, on_parts, part_purity
from analyzers.part_metrics import Plane
from analyzers.pictures import Pictures
from analyzers.sightings import Sightings, bootstrap, random_cells

NODES = 167  # of each layer, as in the authors' code
TOP = 20  # strongest pictures of a node that count, as there

Figure = dict[str, Any]
KINDS = ("nodes", "shuffled_parents", "raw_peaks")
Measure = Callable[[Int64Array], FloatArray]
"""From the rows of the pictures that count, some of them perhaps twice, to one number a node."""


def graph_report(
    graph: ExplanatoryGraph,
    maps: Iterable[Maps],
    marked: Pictures,
    size: tuple[int, int],
    *,
    nodes: int = NODES,
) -> dict[str, Figure]:
    """Return location instability, tracking ratio and purity of a graph's nodes, each with controls.

    Controls: `raw_peaks` are the same layers' filters, each at its highest cell (of a graph a class, in each class as
    many as it has nodes, those that peak highest there); `shuffled_parents` the same nodes
    following the parents (and the root) of another picture; `centre` is always the picture's middle; `random` a cell
    drawn anew for each picture.

    Args:
        graph: one for all or one a class.
        maps: of `marked`, in order, batch by batch.
        marked: pictures with part marks.
        size: (height, width) of the model's input.
        nodes: best nodes of each layer that are measured.
    """
    best = [best_nodes(layer, max(1, nodes // len(layer.filter))) for layer in graph.layers]
    graph, kept = prune(graph, best)
    chosen = [
        [np.searchsorted(old, new) for old, new in zip(*pair, strict=True)] for pair in zip(kept, best, strict=True)
    ]
    seen = _watch(graph, chosen, maps, marked, size)
    names = {"location_instability": _instability, "tracking_ratio": _ratio, "purity": _purity}
    figures = {name: _figure(graph, seen, prepare) for name, prepare in names.items()}
    figures["purity"] |= {"top_pictures": TOP_CIRCLES, "radius_share_of_diagonal": RADIUS}
    figures["location_instability"]["top_pictures"] = TOP
    return figures


def _watch(
    graph: ExplanatoryGraph,
    chosen: list[list[Int64Array]],
    maps: Iterable[Maps],
    marked: Pictures,
    size: tuple[int, int],
) -> list[dict[str, Sightings]]:
    """Return for each layer the sightings of its nodes, of the same with wrong parents, and of its filters."""
    rows: list[list[dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]]] = [[] for _ in graph.layers]
    start = 0
    for batch in maps:
        label = marked.label[start : start + len(batch[graph.layers[0].tensor])]
        start += len(label)
        for place, found in enumerate(_look_at_batch(graph, chosen, batch, label, size)):
            rows[place].append(found)
    result = []
    for place, layer in enumerate(graph.layers):
        both = {kind: [np.concatenate([r[kind][k] for r in rows[place]]) for k in (0, 1)] for kind in KINDS}
        owner = None
        if graph.classes:
            owner = np.concatenate([np.full(len(nodes), number) for number, nodes in enumerate(chosen[place])])
            cell, strength = both["raw_peaks"]
            both["raw_peaks"] = _best_peaks(cell, strength, marked.label, owner)
        result.append(
            {kind: _sightings(layer, cell, strength, marked, size, owner) for kind, (cell, strength) in both.items()}
        )
    return result


def _best_peaks(
    cell: npt.NDArray[Any], strength: npt.NDArray[Any], label: Int64Array, owner: Int64Array
) -> list[npt.NDArray[Any]]:
    """Return as many filters a class as it has nodes, those with the highest mean of their best peaks there."""
    filters = []
    for number in range(int(owner.max()) + 1):
        best = -np.sort(-strength[label == number], axis=0)[:TOP]
        mean = best.mean(0) if len(best) else np.zeros(strength.shape[1])
        count = int((owner == number).sum())
        filters.append(np.resize(np.argsort(-mean, kind="stable")[:count], count))
    chosen = np.concatenate(filters)
    return [cell[:, chosen], strength[:, chosen]]


def _look_at_batch(
    graph: ExplanatoryGraph, chosen: list[list[Int64Array]], batch: Maps, label: Int64Array, size: tuple[int, int]
) -> list[dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]]:
    result: list[dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = []
    for place, layer in enumerate(graph.layers):
        width = sum(map(len, chosen[place]))
        flat = (batch[layer.tensor] / layer.scale[:, None, None]).reshape(*batch[layer.tensor].shape[:2], -1)
        peak = np.where(flat.max(-1) > 0, flat.argmax(-1), -1)
        empty = [(np.full((len(label), width), -1), np.zeros((len(label), width))) for _ in range(2)]
        result.append(dict(zip(KINDS, [*empty, (peak, flat.max(-1))], strict=True)))
    for number in range(max(1, len(graph.classes))):
        pictures = np.flatnonzero(label == number) if graph.classes else np.arange(len(label))
        if not len(pictures):
            continue
        part = {name: values[pictures] for name, values in batch.items()}
        for kind in ("nodes", "shuffled_parents"):
            looked = look(graph, part, size, number=number, shuffled=kind == "shuffled_parents")
            for place, found in enumerate(looked):
                _fill(result[place][kind], found, pictures, chosen[place], number)
    return result


def _fill(
    into: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    layer: Looked,
    pictures: Int64Array,
    chosen: list[Int64Array],
    number: int,
) -> None:
    first = sum(map(len, chosen[:number]))
    columns = np.arange(first, first + len(chosen[number]))
    into[0][np.ix_(pictures, columns)] = layer.cell[:, chosen[number]]
    into[1][np.ix_(pictures, columns)] = layer.score[:, chosen[number]]


def _sightings(
    layer: GraphLayer,
    cell: npt.NDArray[Any],
    strength: npt.NDArray[Any],
    marked: Pictures,
    size: tuple[int, int],
    category: Int64Array | None,
) -> Sightings:
    if marked.parts is None:
        raise ValueError("the pictures carry no part marks")
    height, width = size
    rows, columns = places(layer, size)
    if category is None:
        relative = strength if (strength >= 0).all() else np.exp(strength - strength.max(0))
        category = own_category(relative, marked.label, len(marked.names))
    return Sightings(
        cell=cell.astype(np.int32),
        noisy=cell.astype(np.int32),
        strength=strength.astype(np.float32),
        landmark=marked.parts.xy.astype(np.float64) * (width, height),
        box=marked.parts.box.astype(np.float64) * (width, height, width, height),
        label=marked.label,
        group=marked.group,
        category=category,
        plane=Plane(size, rows * height, columns * width),
    )


def _instability(seen: Sightings) -> Measure:
    def measure(part: Sightings) -> FloatArray:
        peak, landmark, strength = part.peak, part.landmark, part.strength
        table = location_instability(peak, landmark, part.diagonal, strength=strength, top=TOP, minimum=MIN_PICTURES)
        return mean_known(table, axis=1)

    return lambda rows: _of_classes(seen.take(rows), lambda part, _: measure(part))


def _ratio(seen: Sightings) -> Measure:
    def measure(part: Sightings) -> FloatArray:
        return best_landmark(ratio_table(part.peak, part.landmark, minimum=MIN_PICTURES), lower_is_better=True)

    return lambda rows: _of_classes(seen.take(rows), lambda part, _: measure(part))


def _purity(seen: Sightings) -> Measure:
    tables = {
        int(number): on_parts(part.peak, part.box, part.plane)
        for number in np.unique(seen.category)
        for part in [seen.take(np.flatnonzero(seen.label == number), np.flatnonzero(seen.category == number))]
    }
    place = np.zeros(len(seen.label), np.int64)  # of each picture in its class's table
    for number in np.unique(seen.label):
        place[seen.label == number] = np.arange((seen.label == number).sum())

    def measure(rows: Int64Array) -> FloatArray:
        def of_class(part: Sightings, number: int) -> FloatArray:
            known = np.isfinite(part.peak[..., 0]) & (np.isfinite(part.box[..., 0]).sum(1) > 0)[:, None]
            strength = np.zeros(part.cell.shape) if part.strength is None else part.strength
            own = place[rows[seen.label[rows] == number]]
            return part_purity(tables[number][own], strength, known)

        return _of_classes(seen.take(rows), of_class)

    return measure


def _of_classes(seen: Sightings, measure: Callable[[Sightings, int], FloatArray]) -> FloatArray:
    """Measure each node in the pictures of its own class, (nodes,)."""
    result = np.full(len(seen.category), np.nan)
    for number in np.unique(seen.category).tolist():
        own = np.flatnonzero(seen.category == number)
        result[own] = measure(seen.take(np.flatnonzero(seen.label == number), own), number)
    return result


def _figure(
    graph: ExplanatoryGraph, layers: list[dict[str, Sightings]], prepare: Callable[[Sightings], Measure]
) -> Figure:
    everything = np.arange(len(layers[0]["nodes"].label))
    per_layer: list[dict[str, Any]] = []
    measures: list[Measure] = []
    for layer, seen in zip(graph.layers, layers, strict=True):
        nodes, measure = seen["nodes"], prepare(seen["nodes"])
        middle = replace(nodes, cell=np.where(nodes.cell < 0, -1, nodes.cells).astype(np.int32))
        random = replace(nodes, cell=np.where(nodes.cell < 0, -1, random_cells(nodes, 0)).astype(np.int32))
        controls = {
            "centre": middle,
            "raw_peaks": seen["raw_peaks"],
            "shuffled_parents": seen["shuffled_parents"],
            "random": random,
        }
        measured = measure(everything)
        per_layer.append(
            {
                "layer": layer.tensor,
                "value": _number(mean_known(measured)),
                "nodes": int(np.isfinite(measured).sum()),
                "controls": {name: _number(mean_known(prepare(one)(everything))) for name, one in controls.items()},
            }
        )
        measures.append(measure)
    samples = [
        _mean([_number(mean_known(measure(rows))) for measure in measures])
        for rows in bootstrap(layers[0]["nodes"].group)
    ]
    known = [sample for sample in samples if sample is not None]
    return {
        "value": _mean([one["value"] for one in per_layer]),
        "n": int(layers[0]["nodes"].visible.any(1).sum()),
        "standard_error": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "controls": {name: _mean([one["controls"][name] for one in per_layer]) for name in per_layer[0]["controls"]},
        "layers": per_layer,
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _number(value: FloatArray) -> float | None:
    return float(value) if np.isfinite(value) else None
