"""How well nodes of an explanatory graph stay on parts: measures from arrays alone, beside their controls.

Positions here are (x, y) in pixels, NaN where a landmark is not marked, as in `analyzers.metrics`, whose location
instability and tracking ratio serve nodes as they serve filters.
"""

from __future__ import annotations

import numpy as np

from analyzers.metrics import AnyFloats, BoolArray, FloatArray
from analyzers.part_metrics import Plane, box_masks, discs

TOP_CIRCLES = 20
RADIUS = 0.05  # of the circles, share of the picture's diagonal
MIN_PICTURES = 5


def on_parts(position: AnyFloats, box: AnyFloats, plane: Plane, radius: float = RADIUS) -> BoolArray:
    """Return whether a circle round each position lies mostly, by more than half, in each part's box.

    Args:
        position: (pictures, nodes, 2); NaN lies on nothing.
        box: (pictures, parts, 4) x0, y0, x1, y1; NaN where not marked.
        plane: the picture.
        radius: of the circle, share of the diagonal.

    Returns:
        (pictures, nodes, parts).
    """
    masks = box_masks(plane, np.nan_to_num(box, nan=-1.0)).astype(np.float32)
    result = np.zeros((*position.shape[:2], box.shape[1]), np.bool_)
    for picture, mask in enumerate(masks):
        around = discs(plane, np.asarray(position[picture], np.float64), radius * float(np.hypot(*plane.size)))
        covered = around.astype(np.float32) @ mask.T
        result[picture] = covered > 0.5 * np.maximum(around.sum(-1), 1)[:, None]
    return result


def part_purity(
    on_part: BoolArray, strength: AnyFloats, known: BoolArray, *, top: int = TOP_CIRCLES, minimum: int = MIN_PICTURES
) -> FloatArray:
    """Return the share of a node's best pictures in which it lies on one and the same part, its best one.

    The automatic stand-in for asking people whether a node shows one part (arXiv 1812.07997). A node that sits on no
    marked part scores 0.

    Args:
        on_part: (pictures, nodes, parts) of `on_parts`.
        strength: (pictures, nodes) ranks a node's pictures.
        known: (pictures, nodes) whether the picture counts for the node: it was found, and parts are marked.
        top: how many pictures of a node count.
        minimum: nodes with fewer pictures get NaN.

    Returns:
        (nodes,).
    """
    order = np.argsort(np.where(known, -strength, np.inf), axis=0, kind="stable")[:top]
    counted = np.take_along_axis(known, order, 0)
    hits = np.take_along_axis(on_part, order[..., None], 0) & counted[..., None]
    count = counted.sum(0)
    return np.where(count >= minimum, hits.sum(0).max(-1) / np.maximum(count, 1), np.nan)


def locate_part(
    shown: AnyFloats,
    shown_score: AnyFloats,
    mark: AnyFloats,
    position: AnyFloats,
    percentile: AnyFloats,
    *,
    nodes: int = 20,
    smallest: float = 0.02,
) -> FloatArray:
    """Predict where a part is from the nodes that kept the same displacement from it in a few marked pictures.

    Our own rule: of each node Delta = mean(mark - position) over the marked
    pictures and rho its spread; the `nodes` with the best mean log S - |Delta|^2 / (2 (4 smallest)^2) - log rho vote
    with weight percentile / rho^2.

    Args:
        shown: (k, V, 2) nodes' positions in the k marked pictures, in shares of the picture.
        shown_score: (k, V) log S there, less each node's own mean over the pictures it was learned from.
        mark: (k, 2) where the part is.
        position: (pictures, V, 2) in the pictures to predict.
        percentile: (pictures, V) 0..1 of the score among those the node was learned from; 0 where absent.
        nodes: how many are kept.
        smallest: rho is at least this, as with one marked picture no spread can be seen.

    Returns:
        (pictures, 2).
    """
    apart = mark[:, None] - shown
    delta = apart.mean(0)
    rho = np.sqrt(((apart - delta) ** 2).sum(-1).mean(0) + smallest**2)
    worth = shown_score.mean(0) - (delta**2).sum(-1) / (2 * (4 * smallest) ** 2) - np.log(rho)
    kept = np.argsort(-worth, kind="stable")[:nodes]
    weight = percentile[:, kept] / rho[kept] ** 2 + 1e-12
    predicted = (weight[..., None] * (position[:, kept] + delta[kept])).sum(1) / weight.sum(1)[:, None]
    return np.asarray(predicted, np.float64)


def percentiles(score: AnyFloats, quantiles: AnyFloats) -> FloatArray:
    """Return where log scores (pictures, V) lie among each node's quantiles (V, 21), 0..1."""
    share = np.linspace(0, 1, quantiles.shape[1])
    columns = [np.interp(score[:, node], quantiles[node], share) for node in range(len(quantiles))]
    return np.asarray(np.stack(columns, 1))
