"""The board of explanation quality: is the evidence by cell faithful, sane, in place and the same under threads?

Every figure stands beside those of maps that know nothing of the model (the picture's centre, its edges, noise), as
skill over each and as the mean of the paired differences with its standard error. `docs/report.md` says what each is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from analyzers.cell_maps import CONTROLS, cell_of_pixels, control_maps, mean_by_cell
from analyzers.explain import probabilities
from analyzers.faithfulness import Fill, deletion_insertion, order_of_pixels, road
from analyzers.manifest import ClassFeatures, Grid
from analyzers.pictures import Pictures
from analyzers.pixels import decode, to_model_input
from analyzers.plain import Layer, Plain, probe
from analyzers.progress import track
from analyzers.randomise import randomise_body, randomise_head
from analyzers.rank import spearman
from analyzers.runtime import Session

DEFAULT_PICTURES = 100
BATCH = 64
THREADS, ROUNDS = 4, 60
SANE = 0.7  # Spearman's correlation with the map of a randomised model has to be below

Figure = dict[str, Any]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Maps = dict[str, Float64Array]


@dataclass(frozen=True, slots=True)
class _Case:
    """Pictures and what the model says of them.

    Attributes:
        images: (pictures, 3, height, width).
        number: (pictures,) the predicted class.
        maps: by name, (pictures, rows, columns): "evidence" and the controls.
        inside: (height, width) which cell each pixel lies in.
    """

    images: Float32Array
    number: Int64Array
    maps: Maps
    inside: Int64Array


def board(explained: Plain, pictures: Pictures, *, most: int = DEFAULT_PICTURES, seed: int = 0) -> dict[str, Any]:
    """Measure the evidence maps of a model on some of its pictures.

    Args:
        explained: a model with evidence by cell.
        pictures: of its classes.
        most: how many of them, by lot; measuring runs each some thousand times.
        seed: of the lots.

    Returns:
        Figures by name, or {"absent": why} where contributions have no place.
    """
    section = explained.manifest.class_features
    if section is None or section.evidence is None or section.grid is None or section.map is None:
        return {"absent": "the model has no class features" if section is None else section.inexact}
    rows = np.sort(np.random.default_rng(seed).permutation(len(pictures))[:most])
    shown = pictures.take(rows)
    session, _ = probe(explained, Layer(section.map))
    case = _case(explained, section, session, shown)
    report: dict[str, Any] = {"n": len(shown)}
    report |= _faithful(case, _scorer(explained, session), seed)
    report |= _sane(explained, section, session, case, seed)
    report |= _located(case, shown)
    report |= _removed(explained, section, session, case, shown)
    report["concurrency_difference"] = _concurrency(explained, section, session, case)
    return report


def _case(explained: Plain, section: ClassFeatures, session: Session, pictures: Pictures) -> _Case:
    size = explained.manifest.input
    images = to_model_input(pictures.decoded(size.height, size.width))
    chunks = [_run(explained, session, images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    number = np.concatenate([chunk[explained.manifest.scores.tensor].argmax(1) for chunk in chunks])
    evidence = np.concatenate([chunk[cast(str, section.evidence)][:, 0] for chunk in chunks]).astype(np.float64)
    grid = cast(Grid, section.grid)
    maps = {"evidence": evidence} | control_maps(images, grid)
    return _Case(images, number, maps, cell_of_pixels(grid, size.height, size.width))


def _run(explained: Plain, session: Session, images: Float32Array) -> dict[str, npt.NDArray[Any]]:
    return session.run_images(explained.manifest, images)


def _scorer(explained: Plain, session: Session) -> Callable[[Float32Array, int], Float64Array]:
    scores, source = explained.manifest.scores, explained.manifest.input.tensor

    def score(images: Float32Array, number: int) -> Float64Array:
        parts = [
            session.run({source: images[start : start + BATCH]}, [scores.tensor])[scores.tensor]
            for start in range(0, len(images), BATCH)
        ]
        return probabilities(scores, np.concatenate(parts))[:, number]

    return score


def _faithful(case: _Case, score: Callable[[Float32Array, int], Float64Array], seed: int) -> dict[str, Figure]:
    """Return insertion, deletion, their difference, for both fills, and ROAD."""
    cells = case.maps["evidence"][0].size
    fills: tuple[Fill, ...] = ("mean", "blur")
    found: dict[str, dict[str, list[float]]] = {}
    for row in track(range(len(case.images)), "faithfulness", len(case.images)):
        image, number = case.images[row], int(case.number[row])
        for name, maps in case.maps.items():
            order = order_of_pixels(maps[row], case.inside)
            for fill in fills:
                deletion, insertion = deletion_insertion(image, order, cells, score, number, fill)
                for metric, value in (
                    (f"deletion_{fill}", deletion),
                    (f"insertion_{fill}", insertion),
                    (f"insertion_minus_deletion_{fill}", insertion - deletion),
                ):
                    found.setdefault(metric, {}).setdefault(name, []).append(value)
            value = road(image, order, cells, score, number, np.random.default_rng([seed, row]))
            found.setdefault("road", {}).setdefault(name, []).append(value)
    return {
        metric: compared(
            {name: np.array(values) for name, values in by_map.items()}, higher="deletion_" not in metric[:9]
        )
        for metric, by_map in found.items()
    }


def compared(values: dict[str, Float64Array], *, higher: bool, best: float = 1.0) -> Figure:
    """Return a figure of paired values beside those of the controls.

    Skill is (value - control) / (best - control) where higher is better, (control - value) / control where lower is;
    the margin is the mean of the paired differences, in the direction that is better.

    Args:
        values: by map, (n,); NaN where a picture does not tell; "evidence" is the model's.
        higher: whether higher is better.
        best: the best value there is, where higher is better.
    """
    told = np.isfinite(np.stack(list(values.values()))).all(0)
    kept = {name: array[told] for name, array in values.items()}
    own, n = kept["evidence"], int(told.sum())
    if n == 0:
        return {
            "value": None,
            "n": 0,
            "standard_error": None,
            "better": "higher" if higher else "lower",
            "controls": {},
        }
    sign = 1 if higher else -1
    figure: Figure = {
        "value": float(own.mean()),
        "n": n,
        "standard_error": _error(own),
        "better": "higher" if higher else "lower",
        "controls": {name: float(kept[name].mean()) for name in CONTROLS if name in kept},
        "skill": {},
        "margin": {},
    }
    for name, control in figure["controls"].items():
        scale = best - control if higher else control
        figure["skill"][name] = sign * (figure["value"] - control) / scale if scale else None
        difference = sign * (own - kept[name])
        figure["margin"][name] = {"value": float(difference.mean()), "standard_error": _error(difference)}
    return figure


def _error(values: Float64Array) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _sane(explained: Plain, section: ClassFeatures, session: Session, case: _Case, seed: int) -> dict[str, Figure]:
    """Return rank correlations of |map| with those of randomised models and of another class; maps must change."""
    classes, flat = len(explained.manifest.classes), section.flat
    tensor, head = cast(str, section.map), explained.found.head.weight
    features = _features(explained, session, case.images, tensor)
    body = replace(explained, model=randomise_body(explained.model, seed=seed))
    lots = randomise_head(head, seed=seed)
    other_features = _features(explained, probe(body, Layer(tensor))[0], case.images, tensor)
    other_class = (case.number + np.random.default_rng(seed).integers(1, max(classes, 2), len(case.number))) % classes
    changed = {
        "randomised_head": _evidence(features, lots[case.number], flat),
        "randomised_all": _evidence(other_features, lots[case.number], flat),
        "other_class": _evidence(features, head[other_class], flat),
    }
    # Maps that know nothing of the model are made anew as well: they stay the same, and have to fail.
    again = control_maps(case.images, cast(Grid, section.grid), seed=seed + 1)
    report: dict[str, Figure] = {}
    for name, maps in changed.items():
        if name == "other_class" and classes < 2:
            continue
        own = case.maps["evidence"]
        signed = name == "other_class"
        values = _correlations(own, maps) if signed else _correlations(abs(own), abs(maps))
        if not len(values):
            continue
        controls = {control: float(_correlations(case.maps[control], again[control]).mean()) for control in CONTROLS}
        mean = float(values.mean())
        report[f"spearman_{name}"] = {
            "value": mean,
            "median": float(np.median(values)),
            "n": len(values),
            "standard_error": _error(values),
            "better": "lower",
            "controls": controls,
            "skill": {control: (value - mean) / value for control, value in controls.items() if abs(value) > 0.1},
            "passes": mean < SANE,
            "controls_pass": {control: value < SANE for control, value in controls.items()},
        }
    return report


def _correlations(some: Float64Array, others: Float64Array) -> Float64Array:
    """Return Spearman's correlation of each pair of maps.

    Maps of one value throughout tell nothing and are left out; where only the other one is so, nothing is left of the
    first: 0.
    """
    pairs = [pair for pair in zip(some, others, strict=True) if np.ptp(pair[0]) > 0]
    return np.asarray(np.nan_to_num([spearman(*pair) for pair in pairs]), np.float64)


def _features(explained: Plain, session: Session, images: Float32Array, tensor: str) -> Float32Array:
    source = explained.manifest.input.tensor
    parts = [
        session.run({source: images[start : start + BATCH]}, [tensor])[tensor] for start in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts)


def _evidence(features: Float32Array, weight: Float32Array, flat: bool) -> Float64Array:
    """Return (pictures, rows, columns): the evidence by cell for one row of weights a picture."""
    count, channels, rows, columns = features.shape
    if flat:
        return np.asarray((features * weight.reshape(features.shape)).sum(1, dtype=np.float64))
    summed = np.einsum("nf,nfc->nc", weight.astype(np.float64), features.reshape(count, channels, -1))
    return np.asarray(summed.reshape(count, rows, columns) / (rows * columns))


def _located(case: _Case, pictures: Pictures) -> dict[str, Figure]:
    """Return the share of positive evidence within marked parts, and how often its highest cell lies in one."""
    if pictures.parts is None:
        return {}
    height, width = case.inside.shape
    masks = np.stack([_boxes(boxes, height, width) for boxes in pictures.parts.box])
    if not masks.any():
        return {}
    cells = case.maps["evidence"][0].size
    covered = mean_by_cell(masks.astype(np.float64), case.inside, cells)
    mass: Maps = {}
    pointing: Maps = {}
    for name, maps in case.maps.items():
        flat = maps.reshape(len(maps), -1)
        positive = np.maximum(flat, 0)
        total = positive.sum(1)
        share = (positive * covered).sum(1) / np.where(total > 0, total, np.nan)
        marked = masks.any((1, 2))
        mass[name] = np.where(marked, share, np.nan)
        hit = covered[np.arange(len(flat)), flat.argmax(1)] >= 0.5
        pointing[name] = np.where(marked, hit.astype(np.float64), np.nan)
    return {"relevance_mass": compared(mass, higher=True), "pointing_game": compared(pointing, higher=True)}


def _boxes(boxes: npt.NDArray[np.floating[Any]], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return (height, width): the pixels within any of the boxes (x0, y0, x1, y1), shares of the picture."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    inside = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        if np.isfinite(left):
            inside |= ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))
    return inside


def _removed(
    explained: Plain, section: ClassFeatures, session: Session, case: _Case, pictures: Pictures
) -> dict[str, Figure]:
    """Return how well evidence within a part ranks what the logit loses when the part is not there.

    The truth comes from the same pictures drawn without one part each; a part is where the two pictures differ.
    Spearman's correlation over a picture's parts, mean over pictures.
    """
    if pictures.without is None:
        return {}
    size, scores = explained.manifest.input, explained.manifest.scores.tensor
    found: dict[str, list[float]] = {name: [] for name in case.maps}
    pixels_of_cell = np.bincount(case.inside.ravel(), minlength=case.maps["evidence"][0].size)
    for row, encoded in enumerate(track(pictures.without, "parts removed", len(pictures))):
        pairs = [decode(data, size.height, size.width, field=pictures.describe(row)).pixels for data in encoded]
        images = to_model_input(np.stack(pairs))
        gone = (abs(images - case.images[row]) > 1 / 512).any(1)
        seen = gone.any((1, 2))
        if seen.sum() < 3:  # two parts are in order or they are not: that tells little
            for values in found.values():
                values.append(float("nan"))
            continue
        logits = session.run({size.tensor: np.concatenate([case.images[row : row + 1], images])}, [scores])[scores]
        drop = (logits[0] - logits[1:])[seen, case.number[row]]
        for name, maps in case.maps.items():
            by_pixel = (maps[row].ravel() / np.maximum(pixels_of_cell, 1))[case.inside]
            inside = np.array([by_pixel[mask].sum() for mask in gone[seen]])
            found[name].append(spearman(drop, inside))
    return {"part_removal": compared({name: np.array(values) for name, values in found.items()}, higher=True)}


def _concurrency(explained: Plain, section: ClassFeatures, session: Session, case: _Case) -> Figure:
    """Return the largest difference of evidence when four threads ask for different pictures at once."""
    source, evidence = explained.manifest.input.tensor, cast(str, section.evidence)
    chosen = np.arange(min(len(case.images), 16))
    alone = [session.run({source: case.images[row : row + 1]}, [evidence])[evidence] for row in chosen]

    def ask(thread: int) -> float:
        worst = 0.0
        for turn in range(ROUNDS):
            row = int(chosen[(turn * (2 * thread + 1) + thread) % len(chosen)])
            again = session.run({source: case.images[row : row + 1]}, [evidence])[evidence]
            worst = max(worst, float(abs(again - alone[row]).max()))
        return worst

    with ThreadPoolExecutor(THREADS) as threads:
        worst: Sequence[float] = list(threads.map(ask, range(THREADS)))
    return {"value": max(worst), "n": THREADS * ROUNDS}
