"""Where filters look and which class they serve: measures from arrays alone, for models from anywhere.

Peaks (pictures, filters, 2) and landmarks (pictures, landmarks, 2) are (x, y) in one unit, pixels of the model's
input say; every measure stays the same when both are scaled. A peak is NaN where its filter did not fire, a
landmark is NaN where it is not marked. Landmarks mean something within a class only, so hand over one class at a
time unless the parts are the same in all. Tables are (filters, landmarks), NaN where nothing could be measured.

Two ways to treat a silent filter: spreads (`location_instability`, `tracking_ratio`) say where a filter fires
when it fires and leave the picture out; rates (`hit_rate`, `consistent`, `stability`) count it as a miss.

Sources: arXiv 1710.00935 section 5.2 (location instability), EvalProtoPNet, ICCV 2023 (consistency, stability),
CSG, ECCV 2020 (mutual information score). The tracking ratio and the purity are this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
AnyFloats = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]

TOP_PICTURES = 100  # strongest pictures of a filter that the paper measures
BOX_SHARE = 72 / 224  # side of EvalProtoPNet's box, share of the picture's side
CONSISTENT_SHARE = 0.8
MIN_PICTURES = 2  # fewer say nothing about a spread


def location_instability(
    peak: AnyFloats,
    landmark: AnyFloats,
    diagonal: float,
    *,
    strength: AnyFloats | None = None,
    top: int = TOP_PICTURES,
    sample_std: bool = False,
    minimum: int = MIN_PICTURES,
) -> FloatArray:
    """Return D_fk, the standard deviation over pictures of distance(landmark, peak) / diagonal; lower is better.

    arXiv 1710.00935 section 5.2.2. A peak that always sits in the same place scores well on centred objects:
    print controls beside it.

    Args:
        peak: (pictures, filters, 2).
        landmark: (pictures, landmarks, 2).
        diagonal: of the picture, in their unit.
        strength: (pictures, filters) activation at the peak. If given, only the `top` strongest pictures of a
            filter that show the landmark count, as in the paper.
        top: how many.
        sample_std: divide by n - 1 as the authors' code does, not by n.
        minimum: filters that fired on fewer pictures with the landmark get NaN (the code: 2).

    Returns:
        (filters, landmarks), shares of the diagonal.
    """
    table = np.full((peak.shape[1], landmark.shape[1]), np.nan)
    for k in range(landmark.shape[1]):
        distance = _distance(peak, landmark[:, k]) / diagonal
        if strength is not None:
            distance = _strongest(distance, strength, top)
        table[:, k] = np.sqrt(_total_variance([distance], sample=sample_std, minimum=minimum))
    return table


def tracking_ratio(peak: AnyFloats, landmark: AnyFloats, *, minimum: int = MIN_PICTURES) -> FloatArray:
    """Return R_fk = sqrt(tr Cov(p_k - p(mu))) / sqrt(tr Cov(p_k)) over the pictures with both; lower is better.

    0 for a peak at a constant displacement from the landmark, 1 for any constant peak, above 1 for random ones.

    Returns:
        (filters, landmarks); NaN below `minimum` pictures and for landmarks that never move.
    """
    table = np.full((peak.shape[1], landmark.shape[1]), np.nan)
    for k in range(landmark.shape[1]):
        apart = _apart(peak, landmark[:, k])
        seen = [np.where(np.isfinite(apart[axis]), landmark[:, k, None, axis], np.nan) for axis in (0, 1)]
        spread = _total_variance(seen, minimum=minimum)
        spread[~(spread > 0)] = np.nan
        table[:, k] = np.sqrt(_total_variance(apart, minimum=minimum) / spread)
    return table


def hit_rate(peak: AnyFloats, landmark: AnyFloats, radius: float | AnyFloats) -> FloatArray:
    """Return the share of pictures showing the landmark whose peak lies within `radius` of it (PCK).

    Args:
        peak: (pictures, filters, 2).
        landmark: (pictures, landmarks, 2).
        radius: one for all, or (pictures, landmarks), such as `box_radius`; the rim is inside.

    Returns:
        (filters, landmarks); higher is better, no peak is a miss, NaN where no picture shows the landmark.
    """
    limit = np.broadcast_to(np.asarray(radius, np.float64), landmark.shape[:2])
    hits = [_distance(peak, landmark[:, k]) <= limit[:, None, k] for k in range(landmark.shape[1])]
    return _share_of_visible(np.stack(hits, -1), landmark)


def box_radius(box: AnyFloats, share: float = 0.5) -> FloatArray:
    """Return `share` of the longer side of boxes x0, y0, x1, y1 (..., 4), as a radius for `hit_rate`."""
    sides = np.maximum(box[..., 2] - box[..., 0], box[..., 3] - box[..., 1])
    return np.asarray(share * sides, np.float64)


def box_hits(peak: AnyFloats, landmark: AnyFloats, size: tuple[int, int], share: float = BOX_SHARE) -> BoolArray:
    """Return which landmarks lie in the box round each peak, (pictures, filters, landmarks).

    Args:
        peak: (pictures, filters, 2).
        landmark: (pictures, landmarks, 2).
        size: (height, width) of the picture in their unit.
        share: side of the box, as a share of the picture's sides; EvalProtoPNet takes 72 of 224 pixels.
    """
    half = np.array([size[1], size[0]]) * share / 2
    return np.asarray((abs(landmark[:, None] - peak[:, :, None]) <= half).all(-1))


def consistent(hits: BoolArray, landmark: AnyFloats, share: float = CONSISTENT_SHARE) -> FloatArray:
    """Return 1 for filters whose box holds some part in at least `share` of the pictures that show it, else 0.

    Args:
        hits: (pictures, filters, landmarks) of `box_hits`, of one class.
        landmark: (pictures, landmarks, 2).
        share: what is enough.

    Returns:
        (filters,); NaN where no picture shows any part. EvalProtoPNet reports the mean.
    """
    best = best_landmark(_share_of_visible(hits, landmark), lower_is_better=False)
    return np.where(np.isnan(best), np.nan, best >= share)


def stability(hits: BoolArray, noisy: BoolArray) -> FloatArray:
    """Return the share of pictures whose hits stay exactly the same under noise, (filters,).

    Args:
        hits: (pictures, filters, landmarks) of `box_hits`.
        noisy: the same for the disturbed pictures.
    """
    if not len(hits):
        return np.full(hits.shape[1], np.nan)
    return np.asarray((hits == noisy).all(-1).mean(0), np.float64)


def own_category(strength: AnyFloats, label: Int64Array, classes: int) -> Int64Array:
    """Return the class on whose pictures each filter peaks highest on average, (filters,), as the code has it."""
    return np.asarray(_class_means(strength, label, classes).argmax(0), np.int64)


def class_purity(strength: AnyFloats, label: Int64Array, classes: int) -> FloatArray:
    """Return max_c m_c / sum_c m_c for the mean peak m_c >= 0 on pictures of class c; 1 / classes to 1.

    Args:
        strength: (pictures, filters) activation at the peak; below 0 counts as 0.
        label: (pictures,).
        classes: how many there are.

    Returns:
        (filters,); NaN for filters that never fire.
    """
    mean = np.maximum(_class_means(np.maximum(strength, 0), label, classes), 0)
    total = mean.sum(0)
    return np.where(total > 0, mean.max(0) / np.where(total > 0, total, 1), np.nan)


def mutual_information(feature: AnyFloats, label: Int64Array, classes: int, *, bins: int = 10) -> FloatArray:
    """Return MI(feature_k; 1[y = c]) in nats, (features, classes); the score is mean_k max_c of it.

    Plug-in estimate on up to `bins` bins that hold equally many pictures: bins are cut at quantiles and equal
    values stay together, so a feature that is mostly 0 has fewer. Unrelated features get about
    (bins - 1) / (2 pictures), not 0: print the score of shuffled labels beside it.

    Args:
        feature: (pictures, features), such as pooled activations.
        label: (pictures,).
        classes: how many there are.
        bins: into how many bins a feature is cut at most.
    """
    place = np.zeros(feature.shape, np.int64)
    for edge in np.quantile(feature, np.arange(1, bins) / bins, axis=0):
        place += feature > edge
    number = (np.arange(feature.shape[1]) * bins + place) * classes + label[:, None]
    joint = np.bincount(number.ravel(), minlength=feature.shape[1] * bins * classes) / len(label)
    joint = joint.reshape(feature.shape[1], bins, classes)
    inside, prior = joint.sum(2, keepdims=True), np.bincount(label, minlength=classes) / len(label)
    outside = inside - joint
    nats = _information(joint, inside * prior) + _information(outside, inside * (1 - prior))
    return np.asarray(nats.sum(1))


def best_landmark(table: FloatArray, *, lower_is_better: bool) -> FloatArray:
    """Return each filter's best landmark of a table (filters, landmarks), leaving NaN out; NaN where all are."""
    best = np.fmin if lower_is_better else np.fmax
    return np.asarray(best.reduce(table, axis=1))


def mean_known(values: FloatArray, axis: int | None = None) -> FloatArray:
    """Return the mean of what is not NaN; NaN where nothing is left."""
    known = np.isfinite(values)
    count = known.sum(axis)
    total = np.where(known, values, 0).sum(axis)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _apart(peak: AnyFloats, landmark: AnyFloats) -> list[FloatArray]:
    """Return x and y from peaks to one landmark (pictures, 2), each (pictures, filters)."""
    return [landmark[:, None, axis].astype(np.float64) - peak[..., axis] for axis in (0, 1)]


def _distance(peak: AnyFloats, landmark: AnyFloats) -> FloatArray:
    """Return the lengths (pictures, filters) from peaks to one landmark (pictures, 2)."""
    return np.asarray(np.hypot(*_apart(peak, landmark)))


def _strongest(values: FloatArray, strength: AnyFloats, top: int) -> FloatArray:
    """Return the known `values` of each filter's `top` strongest pictures, (up to top, filters)."""
    order = np.argsort(np.where(np.isfinite(values), -strength, np.inf), axis=0, kind="stable")[:top]
    return np.take_along_axis(values, order, 0)


def _total_variance(
    coordinates: Sequence[FloatArray], *, sample: bool = False, minimum: int = MIN_PICTURES
) -> FloatArray:
    """Return tr Cov of points, given by coordinate (pictures, filters), over the known pictures, (filters,)."""
    known = np.isfinite(coordinates[0])
    count = known.sum(0)
    squares = np.zeros(known.shape[1])
    for values in coordinates:
        mean = np.where(known, values, 0).sum(0) / np.maximum(count, 1)
        apart = np.where(known, values - mean, 0)
        squares += (apart * apart).sum(0)
    enough = count >= max(minimum, 2)
    return np.where(enough, squares / np.where(enough, count - sample, 1), np.nan)


def _share_of_visible(hits: BoolArray, landmark: AnyFloats) -> FloatArray:
    visible = np.asarray(np.isfinite(landmark).all(-1))
    count = visible.sum(0)
    return np.where(count > 0, (hits & visible[:, None]).sum(0) / np.maximum(count, 1), np.nan)


def _class_means(values: AnyFloats, label: Int64Array, classes: int) -> FloatArray:
    """Return means (classes, columns) of values (pictures, columns); -inf for classes without a picture."""
    result = np.full((classes, values.shape[1]), -np.inf)
    order = np.argsort(label, kind="stable")
    present, start = np.unique(label[order], return_index=True)
    count = np.diff(start, append=len(label))
    result[present] = np.add.reduceat(values[order].astype(np.float64), start, axis=0) / count[:, None]
    return result


def _information(joint: FloatArray, independent: FloatArray) -> FloatArray:
    """Return p log(p / q), 0 where p is 0."""
    some = joint > 1e-15  # differences of sums of 1/n leave rounding behind
    return np.where(some, joint * np.log(np.where(some, joint, 1) / np.where(some, independent, 1)), 0)
