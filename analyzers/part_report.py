"""The part figures of a report: every measure with its error and with what answers without vision would score.

`docs/report.md` describes the figures. Landmarks mean something within a class only, so each filter is measured
on the pictures of its own class unless a figure says otherwise. Controls take the same pictures and the same
road, choices of the best landmark or class included: `centre` is always the picture's middle, `best_constant`
the one place per class (a cell or the middle) that scores best on these very pictures, `random` a cell drawn
anew for each picture and filter, `perfect` the cell nearest to one landmark, the best one. Errors are standard
deviations over bootstrap samples of photographs, not over filters, which all look at the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from analyzers import metrics
from analyzers.metrics import FloatArray, Int64Array, best_landmark, mean_known
from analyzers.part_metrics import (
    MIN_IOU,
    associations,
    box_masks,
    disc,
    discs,
    iou,
    part_interpretability,
    single_disc_associations,
)
from analyzers.sightings import BOOTSTRAPS, Float32Array, Int32Array, Sightings, bootstrap, perfect_cells, random_cells

MIN_PICTURES = 5  # a filter that fired on fewer has no spread worth averaging
HIT_RADIUS = 0.1  # share of the diagonal
TRACKS_BELOW = 0.5
CHUNK = 64  # filters that are measured at a time over all classes

Figure = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """A way from peaks and landmarks to one number a filter.

    Attributes:
        measure: the number of each filter on pictures of one class, (filters,).
        lower_is_better: or higher.
        rule: each filter on its own class, on whichever class is best for it (the paper's, for networks of many
            categories), or on all pictures at once.
        silence_counts: whether pictures in which a filter does not fire count, as misses; controls then answer
            in every picture, and otherwise where the filter did.
    """

    measure: Callable[[Sightings], FloatArray]
    lower_is_better: bool
    rule: Literal["own_class", "best_class", "all_pictures"] = "own_class"
    silence_counts: bool = False


def _instability(seen: Sightings) -> FloatArray:
    table = metrics.location_instability(
        seen.peak, seen.landmark, seen.diagonal, strength=seen.strength, minimum=MIN_PICTURES
    )
    return mean_known(table, axis=1)


def _ratio(seen: Sightings) -> FloatArray:
    table = metrics.tracking_ratio(seen.peak, seen.landmark, minimum=MIN_PICTURES)
    return best_landmark(table, lower_is_better=True)


def _tracks(seen: Sightings) -> FloatArray:
    return (_ratio(seen) < TRACKS_BELOW).astype(np.float64)  # a filter that was not measured does not


def _firing_rate(seen: Sightings) -> FloatArray:
    return mean_known((seen.cell >= 0).astype(np.float64), axis=0)


def _hit_rate(seen: Sightings) -> FloatArray:
    table = metrics.hit_rate(seen.peak, seen.landmark, HIT_RADIUS * seen.diagonal)
    return best_landmark(table, lower_is_better=False)


def _consistency(seen: Sightings) -> FloatArray:
    return metrics.consistent(metrics.box_hits(seen.peak, seen.landmark, seen.plane.size), seen.landmark)


def _stability(seen: Sightings) -> FloatArray:
    seen = seen.take(np.flatnonzero(seen.visible.any(1)))
    clean, noisy = (
        metrics.box_hits(seen.places[cell], seen.landmark, seen.plane.size) for cell in (seen.cell, seen.noisy)
    )
    return metrics.stability(clean, noisy)


METRICS = {
    "location_instability": Metric(_instability, True),
    "location_instability_best_class": Metric(_instability, True, "best_class"),
    "tracking_ratio": Metric(_ratio, True),
    "tracking_ratio_all_pictures": Metric(_ratio, True, "all_pictures"),
    "tracking_filters": Metric(_tracks, False),
    "firing_rate": Metric(_firing_rate, False, silence_counts=True),
    "hit_rate": Metric(_hit_rate, False, silence_counts=True),
    "consistency": Metric(_consistency, False, silence_counts=True),
    "stability": Metric(_stability, False, silence_counts=True),
}


def location_figures(seen: Sightings) -> dict[str, Figure]:
    """Return the figures of `METRICS` by name."""
    figures = {name: location_figure(seen, metric) for name, metric in METRICS.items()}
    figures["hit_rate"]["radius_share_of_diagonal"] = HIT_RADIUS
    for name in ("skill", "controls"):
        figures["firing_rate"].pop(name)  # it is no merit, it says how much the others rest on
    return figures


def location_figure(seen: Sightings, metric: Metric) -> Figure:
    """Return one metric's mean over filters with its error and controls."""
    per_filter = _per_filter(seen, metric)
    samples = [float(mean_known(_per_filter(seen.take(rows), metric))) for rows in bootstrap(seen.group)]
    return figure(per_filter, samples, int(seen.visible.any(1).sum()), _controls(seen, metric), metric.lower_is_better)


def figure(
    per_filter: FloatArray, samples: list[float], n: int, controls: dict[str, float], lower_is_better: bool
) -> Figure:
    """Return the mean over filters as a figure; numbers that do not exist are None.

    Args:
        per_filter: (filters,), NaN where a filter could not be measured.
        samples: the mean for each bootstrap sample.
        n: number of pictures.
        controls: what answers without vision score.
        lower_is_better: decides the sign of the skill against the best constant.
    """
    value = float(mean_known(per_filter))
    blind = controls.get("best_constant", np.nan)
    room = blind if lower_is_better else 1 - blind
    gain = blind - value if lower_is_better else value - blind
    return {
        "value": _number(value),
        "n": n,
        "standard_error": _number(_deviation(samples)),
        "filters": int(np.isfinite(per_filter).sum()),
        "skill": _number(gain / room if room > 0 else np.nan),
        "controls": {name: _number(control) for name, control in controls.items()},
    }


def class_figures(
    strength: Float32Array, pooled: Float32Array, label: Int64Array, group: Int64Array, classes: int
) -> dict[str, Figure]:
    """Return how much filters belong to classes: purity of the peaks and information in the pooled features.

    Args:
        strength: (pictures, filters) activation at the peak.
        pooled: (pictures, features) of the final layer.
        label: (pictures,).
        group: (pictures,) equal for crops of one photograph.
        classes: how many there are.
    """

    def purity(rows: Int64Array, answer: Int64Array) -> FloatArray:
        return metrics.class_purity(strength[rows], answer, classes)

    def information(rows: Int64Array, answer: Int64Array) -> FloatArray:
        return np.asarray(metrics.mutual_information(pooled[rows], answer, classes).max(1))

    share = np.bincount(label, minlength=classes) / len(label)
    seen = share[share > 0]
    entropy = -(seen * np.log(seen) + (1 - seen) * np.log(np.where(seen < 1, 1 - seen, 1)))
    everything, shuffled = np.arange(len(label)), np.random.default_rng(0).permutation(label)
    figures = {}
    for name, measure, blind, perfect in (
        ("class_purity", purity, 1 / len(seen), 1.0),
        ("mutual_information_score", information, 0.0, float(entropy.max())),
    ):
        random = float(mean_known(measure(everything, shuffled)))
        samples = [float(mean_known(measure(rows, label[rows]))) for rows in bootstrap(group)]
        controls = {"best_constant": blind, "random": random, "perfect": perfect}
        figures[name] = figure(measure(everything, label), samples, len(label), controls, False)
    figures["mutual_information_score"].pop("skill")  # nats have no 1 to reach
    return figures


def interpretability_figure(seen: Sightings, maps: dict[int, tuple[Int64Array, Float32Array]]) -> Figure:
    """Return part interpretability with discs as large as the median marked part's box.

    Args:
        seen: peaks and marks.
        maps: for each class rows into `seen` and the maps there of the filters whose own class it is.
    """
    sides = seen.box[..., 2:] - seen.box[..., :2]
    radius = float(np.sqrt(np.nanmedian(sides.prod(-1)) / np.pi))
    names = ("filters", "centre", "best_constant", "random", "perfect")
    values = {name: np.full(len(seen.category), np.nan) for name in names}
    samples = np.full((BOOTSTRAPS, len(seen.category)), np.nan)
    weights = [np.bincount(rows, minlength=len(seen.label)).astype(np.float64) for rows in bootstrap(seen.group)]
    for number, (rows, shown) in maps.items():
        own = seen.category == number
        part = seen.take(rows, own)
        visible = part.visible
        hits = associations(shown, part.box, seen.plane, disc(seen.plane, radius))
        values["filters"][own] = part_interpretability(hits, visible)
        for draw, weight in enumerate(weights):
            samples[draw, own] = part_interpretability(hits, visible, weight[rows])
        for name, control in _disc_controls(part, radius).items():
            values[name][own] = control
    controls = {name: float(mean_known(values[name])) for name in names[1:]}
    counted = sum(int(seen.visible[rows].any(1).sum()) for rows, _ in maps.values())
    means = [float(mean) for mean in mean_known(samples, axis=1)]
    return figure(values["filters"], means, counted, controls, False) | {
        "region": "disc",
        "radius_share_of_diagonal": radius / seen.diagonal,
        "min_iou": MIN_IOU,
    }


def _disc_controls(part: Sightings, radius: float) -> dict[str, FloatArray]:
    """Return P_f of made-up maps with one disc, for pictures of one class and its filters."""
    visible = part.visible
    masks = box_masks(part.plane, part.box)
    around = discs(part.plane, part.places[:-1], radius)
    overlap = iou(around, masks.reshape(-1, masks.shape[-1])).reshape(len(around), *masks.shape[:2])
    table = np.moveaxis(overlap > MIN_IOU, 0, 1)  # (pictures, places, parts)
    best = np.nan_to_num(part_interpretability(table, visible)).argmax()
    strength = np.ones(part.cell.shape, np.float32) if part.strength is None else part.strength

    def score(cell: Int32Array) -> FloatArray:
        placed = np.broadcast_to(cell, part.cell.shape)
        return part_interpretability(single_disc_associations(placed, strength, table, part.cells), visible)

    tracked = [score(cell) for cell in perfect_cells(part)]
    return {
        "centre": score(np.array(part.cells, np.int32)),
        "best_constant": score(np.array(best, np.int32)),
        "random": score(random_cells(part, 0)),
        "perfect": np.fmax.reduce(tracked),
    }


def _per_filter(seen: Sightings, metric: Metric) -> FloatArray:
    result = np.full(len(seen.category), np.nan)
    if metric.rule == "own_class":
        for number in np.unique(seen.category):
            filters = seen.category == number
            result[filters] = metric.measure(seen.take(seen.label == number, filters))
        return result
    for start in range(0, len(result), CHUNK):
        chunk = slice(start, start + CHUNK)
        per_class = [metric.measure(seen.take(rows, chunk)) for _, rows in _classes(seen, metric)]
        result[chunk] = (np.fmin if metric.lower_is_better else np.fmax).reduce(per_class)
    return result


def _classes(seen: Sightings, metric: Metric) -> Iterator[tuple[int, Int64Array]]:
    """Yield the sets of pictures within which a metric measures."""
    if metric.rule == "all_pictures":
        yield 0, np.arange(len(seen.label))
        return
    for number in np.unique(seen.label):
        yield int(number), np.flatnonzero(seen.label == number)


def _controls(seen: Sightings, metric: Metric) -> dict[str, float]:
    def score(cell: Int32Array, noisy: Int32Array | None = None) -> FloatArray:
        cell, noisy = (np.broadcast_to(c, seen.cell.shape) for c in (cell, cell if noisy is None else noisy))
        if not metric.silence_counts:
            cell = np.where(seen.cell < 0, -1, cell)
        return _per_filter(replace(seen, cell=cell, noisy=noisy), metric)

    tracked = [score(cell) for cell in perfect_cells(seen)]
    scores = {
        "centre": score(np.array(seen.cells, np.int32)),
        "best_constant": score(_best_constant_cells(seen, metric)),
        "random": score(random_cells(seen, 0), random_cells(seen, 1)),
        "perfect": (np.fmin if metric.lower_is_better else np.fmax).reduce(tracked),
    }
    return {name: float(mean_known(values)) for name, values in scores.items()}


def _best_constant_cells(seen: Sightings, metric: Metric) -> Int32Array:
    """Return for each picture the place that scores best for its class, (pictures, 1); chosen on these pictures."""
    places = np.arange(seen.cells + 1, dtype=np.int32)  # the last is the picture's middle
    result = np.zeros((len(seen.label), 1), np.int32)
    worst = np.inf if metric.lower_is_better else -np.inf
    for _, rows in _classes(seen, metric):
        everywhere = np.broadcast_to(places, (len(rows), len(places)))
        view = seen.take(rows, slice(0))
        view = replace(view, cell=everywhere, noisy=everywhere, strength=None, category=np.zeros_like(places, np.int64))
        scores = metric.measure(view)
        scores = np.where(np.isnan(scores), worst, scores)
        result[rows] = scores.argmin() if metric.lower_is_better else scores.argmax()
    return result


def _deviation(samples: list[float]) -> float:
    known = np.array([sample for sample in samples if np.isfinite(sample)])
    return float(known.std(ddof=1)) if len(known) > 1 else np.nan


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
