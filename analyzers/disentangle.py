"""How far classes have features of their own: concentration, overlap and mutual information of class features.

Concentration is that of the features themselves over each class's pictures; overlap is that of the chosen sets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.class_features import Head, Histogram, Int64Array, membership
from analyzers.feature_table import FeatureTable

Figure = dict[str, Any]
Float64Array = npt.NDArray[np.float64]
CORRUPTIONS = ("zero", "mean", "noise")
RANDOM_SETS = 10


def concentration(table: FeatureTable, head: Head, k1: int) -> dict[str, float]:
    """Return how few features carry a class, averaged over classes.

    psi: 1 - (median over a class's pictures of how many features hold half of the sum of all) / (number of features).
    mu: mean over features of (highest class mean - mean of the other class means) / (their sum); features that never
    fire are left out. histogram_entropy: in bits, of a class's histogram of k1 strongest features. top_share: of that
    histogram's counts, what the k1 most frequent features hold.
    """
    classes, features = head.weight.shape
    psi, means = [], np.zeros((classes, features))
    for c in range(classes):
        own = np.maximum(table.pooled[table.label == c].astype(np.float64), 0)
        means[c] = own.mean(0)
        ordered = -np.sort(-own, axis=1)
        held = ordered.cumsum(1) >= 0.5 * ordered.sum(1, keepdims=True)
        psi.append((features - float(np.median(held.argmax(1) + 1))) / features)
    best = means.max(0)
    others = (means.sum(0) - best) / max(classes - 1, 1)
    fires = best + others > 0
    histogram = Histogram(head, min(k1, features), "feature")
    histogram.add(table.pooled, table.label)
    share = histogram.counts / np.maximum(histogram.counts.sum(1, keepdims=True), 1)
    logs = np.log2(np.where(share > 0, share, 1))
    return {
        "psi": float(np.mean(psi)),
        "mu": float(((best - others)[fires] / (best + others)[fires]).mean()) if fires.any() else 0.0,
        "histogram_entropy": float(-(share * logs).sum(1).mean()),
        "top_share": float((-np.sort(-share, axis=1)[:, :k1]).sum(1).mean()),
    }


def overlap(head: Head, sets: Int64Array) -> dict[str, float]:
    """Return how much classes share features: mean Jaccard index of pairs, size of the union, mutual information.

    Mutual information of two classes' membership vectors over the features, natural logarithm, mean over ordered
    pairs; `_with_self` counts each class with itself too, as the paper's own script does. It is not monotone in the
    overlap (disjoint sets of 20 of 64 have more of it than sets that share 6), so read the Jaccard index.
    """
    own = membership(head, sets).astype(np.float64)
    classes, features = own.shape
    both = own @ own.T
    size = own.sum(1)
    jaccard = both / (size[:, None] + size - both)
    information = np.zeros((classes, classes))
    for first in (False, True):
        for second in (False, True):
            a, b = (own if first else 1 - own), (own if second else 1 - own)
            joint = a @ b.T / features
            expected = np.outer(a.mean(1), b.mean(1))
            ratio = np.where(joint > 0, joint / np.where(expected > 0, expected, 1), 1)
            information += joint * np.log(ratio)
    apart = ~np.eye(classes, dtype=bool)
    return {
        "jaccard": float(jaccard[apart].mean()) if classes > 1 else 1.0,
        "union": int(own.any(0).sum()),
        "mutual_information": float(information[apart].mean()) if classes > 1 else 0.0,
        "mutual_information_with_self": float(information.mean()),
    }


def ablation(
    table: FeatureTable, head: Head, sets: Int64Array, mean: npt.NDArray[np.floating[Any]], *, seed: int = 0
) -> dict[str, dict[str, Figure]]:
    """Return each class's accuracy on its own pictures, averaged, when features are corrupted.

    "removed" corrupts the class's features, "random" as many others by lot (the control, mean of 10), "only" corrupts
    all but the class's own. "mean" replaces them by their mean over the training pictures; "zero" and "noise" (N(0,1),
    the paper's protocol) flatter every positive feature, and "only" under "zero" gives the right class by
    construction, since it silences what argues for the others: read "mean".

    Args:
        table: test pictures.
        head: the full layer.
        sets: (classes, k).
        mean: (features,) over the training pictures.
        seed: of noise and lots.
    """
    random = np.random.default_rng(seed)
    own = membership(head, sets)
    lots = [_random_sets(own, random) for _ in range(RANDOM_SETS)]
    report: dict[str, dict[str, Figure]] = {}
    for corruption in CORRUPTIONS:
        fill = partial(_fill, corruption, mean, random)
        controls = [_accuracy(table, head, lot, fill) for lot in lots]
        report[corruption] = {
            "removed": _figure(_accuracy(table, head, own, fill), table),
            "random": {"value": float(np.mean(controls)), "standard_error": float(np.std(controls, ddof=1))},
            "only": _figure(_accuracy(table, head, ~own, fill), table),
        }
    return report


def _fill(
    corruption: str, mean: npt.NDArray[np.floating[Any]], random: np.random.Generator, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    if corruption == "noise":
        return random.standard_normal(shape)
    return np.zeros(shape) if corruption == "zero" else np.broadcast_to(mean, shape)


def _figure(value: float, table: FeatureTable) -> Figure:
    n = len(table.label)
    return {"value": value, "n": n, "standard_error": float(np.sqrt(max(value * (1 - value), 0) / n))}


def _random_sets(own: npt.NDArray[np.bool_], random: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return sets of the same sizes, of features that are not the class's."""
    drawn = np.zeros_like(own)
    for number, row in enumerate(own):
        others = np.flatnonzero(~row)
        drawn[number, random.permutation(others)[: row.sum()]] = True
    return drawn


def _accuracy(
    table: FeatureTable,
    head: Head,
    corrupted: npt.NDArray[np.bool_],
    fill: Callable[[tuple[int, ...]], npt.NDArray[Any]],
) -> float:
    """Return the mean over classes of the accuracy on the class's pictures, its `corrupted` features replaced."""
    shares = []
    for number in range(len(head.bias)):
        pooled = table.pooled[table.label == number].astype(np.float64)
        if not len(pooled):
            continue
        changed = np.where(corrupted[number], fill(pooled.shape), pooled)
        shares.append(float(((changed @ head.weight.T + head.bias).argmax(1) == number).mean()))
    return float(np.mean(shares))
