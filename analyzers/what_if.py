"""What a classifier would answer if features counted for less, more or nothing: exact, without another run.

The scores are linear in the features, z = W f + b, so scaling feature j by s changes every class's logit by
(s - 1) W_cj f_j and nothing else. A part is a feature where features are the means of the filters' maps; a node of an
explanatory graph stands for the filter that it is a pattern of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from analyzers.errors import InvalidInputError
from analyzers.manifest import ClassFeatures, Manifest

Float64Array = npt.NDArray[np.float64]
Outputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is to count for more or less.

    Attributes:
        kind: "feature", "part" (a filter of the parts layer) or "node" (of the explanatory graph).
        number: of the feature, filter or node.
        scale: factor of its contributions; 0 removes it.
        layer: of a node: place of its layer in the graph, 0 the top one.
    """

    kind: Literal["feature", "part", "node"]
    number: int
    scale: float = 0.0
    layer: int = 0


@dataclass(frozen=True, slots=True)
class Flip:
    """The smallest set of features whose absence makes another class win.

    Attributes:
        features: their numbers, those that argue most for the winner against the other class first.
        logits: of every class without them.
    """

    features: tuple[int, ...]
    logits: Float64Array


def scales(changes: Sequence[Change], manifest: Manifest, outputs: Outputs, row: int) -> dict[int, float]:
    """Return the factor of every feature that changes.

    Args:
        changes: what is to count for more or less.
        manifest: of the model.
        outputs: of its run, batch first; says whose graph a node is of.
        row: which picture of the batch.

    Raises:
        InvalidInputError: there is no such feature, part or node, it is named twice, or it is no feature.
    """
    section = manifest.class_features
    if section is None:
        raise InvalidInputError("model", "has no class features, so nothing is known of its final layer")
    found: dict[int, float] = {}
    for place, change in enumerate(changes):
        field = f"changes[{place}]"
        if not np.isfinite(change.scale):
            raise InvalidInputError(field, f"has scale {change.scale}; expected a finite number, 0 to remove")
        feature = _feature(change, field, manifest, section, outputs, row)
        if feature in found:
            raise InvalidInputError(field, f"changes feature {feature}, which an earlier one changes already")
        found[feature] = change.scale
    return found


def _feature(change: Change, field: str, manifest: Manifest, section: ClassFeatures, outputs: Outputs, row: int) -> int:
    features = outputs[section.pooled].shape[1]
    number, named = change.number, change.kind
    if named != "feature" and not section.features_are_filters:
        why = section.inexact or "the parts are filters of another layer"
        raise InvalidInputError(field, f"names a {named}, but parts of this model are no features: {why}")
    if named == "node":
        graph = manifest.explanatory_graph
        if graph is None or not 0 <= change.layer < len(graph.layers):
            there = 0 if graph is None else len(graph.layers)
            raise InvalidInputError(field, f"names layer {change.layer} of the graph; the model has {there} of them")
        layer = graph.layers[change.layer]
        if manifest.parts is None or layer.layer not in (section.map, manifest.parts.layer):
            raise InvalidInputError(field, f"names a node of '{layer.layer}', whose filters are no features")
        own = 0 if graph.graph is None else int(outputs[graph.graph][row])
        places = [place for place, node in enumerate(layer.node[own]) if node == number >= 0]
        if not places:
            raise InvalidInputError(field, f"names node {number}, which layer {change.layer} of the graph has not")
        return layer.filter[own][places[0]]
    if not 0 <= number < features:
        raise InvalidInputError(field, f"names {named} {number}; there are 0 to {features - 1}")
    return number


def what_if(
    logits: npt.NDArray[Any], pooled: npt.NDArray[Any], weight: npt.NDArray[Any], factors: Mapping[int, float]
) -> Float64Array:
    """Return the logits of every class once features are scaled.

    Args:
        logits: (classes,) as they are.
        pooled: (features,) as they are.
        weight: (classes, features) of the final layer.
        factors: by feature; those that are not named stay.
    """
    numbers = np.array(list(factors), np.int64)
    change = (np.array(list(factors.values()), np.float64) - 1) * pooled[numbers].astype(np.float64)
    return np.asarray(logits.astype(np.float64) + weight[:, numbers].astype(np.float64) @ change)


def smallest_flip(logits: npt.NDArray[Any], pooled: npt.NDArray[Any], weight: npt.NDArray[Any]) -> Flip | None:
    """Return the smallest set of features without which the best class no longer wins; None if there is none.

    Against one other class B, feature j argues (w_A - w_B)_j f_j for A; taking those that argue most is the smallest
    set that lets B pass A, and the smallest over all B is the smallest there is. Of equally small ones, the set that
    lets B pass by most.

    Args:
        logits: (classes,).
        pooled: (features,).
        weight: (classes, features).
    """
    best = int(logits.argmax())
    values, features = weight.astype(np.float64), pooled.astype(np.float64)
    argued = (values[best] - values) * features
    order = np.argsort(-argued, axis=1, kind="stable")
    removed = np.cumsum(np.maximum(np.take_along_axis(argued, order, 1), 0), axis=1)
    margin = (logits[best].astype(np.float64) - logits)[:, None]
    passes = removed > margin
    passes[best] = False
    if not passes.any():
        return None
    needed = np.where(passes.any(1), passes.argmax(1) + 1, features.size + 1)
    count = int(needed.min())
    ahead = np.where(needed == count, removed[:, count - 1] - margin[:, 0], -np.inf)
    chosen = tuple(int(j) for j in order[int(ahead.argmax()), :count])
    return Flip(chosen, what_if(logits, pooled, weight, dict.fromkeys(chosen, 0.0)))
