"""`class_features`: the few features that decide each class (Decomposing the Deep, arXiv 2112.07719).

A final layer z = W f + b is split per class c into k class-specific features I_c and the rest:
z_c = b_c + sum_{j in I_c} W_cj f_j + sum_{j not in I_c} W_cj f_j.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.errors import InvalidInputError
from analyzers.manifest import Rule

INDEX_SETS = "{class number: [feature numbers]}"

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

# `index` is (classes, k, 1) so that GatherND can pick features without reshapes; the rest is a second, masked
# final layer, so that contributions + rest + bias = logit is a law that can be checked, not a definition.
LEDGER = """
<ir_version: 10, opset_import: ["" : 20]>
ledger (
    float[batch, features] pooled, float[batch, classes] logits, int64[1] max_classes, int64[classes, k, 1] index,
    float[classes, k] weight, float[classes, features] rest_weight, float[classes] class_bias,
    float[classes, features] head_weight
) => (
    int64[batch, top] classes, int64[batch, top, k, 1] features, float[batch, top, k] activations,
    float[batch, top, k] contributions, float[batch, classes] rest, float[batch, top] bias,
    float[classes, features] head
)
{
    top_logits, classes = TopK (logits, max_classes)
    features = Gather (index, classes)
    activations = GatherND <batch_dims: int = 1> (pooled, features)
    top_weight = Gather (weight, classes)
    contributions = Mul (activations, top_weight)
    rest = Gemm <transB: int = 1> (pooled, rest_weight)
    bias = Gather (class_bias, classes)
    head = Identity (head_weight)
}
"""

# Behind LEDGER where classes have more features than reasons are wanted: those with the largest contributions.
REASONS = """
<ir_version: 10, opset_import: ["" : 20]>
reasons (
    int64[batch, top, k, 1] every_feature, float[batch, top, k] every_activation,
    float[batch, top, k] every_contribution, int64[1] max_reasons
) => (
    int64[batch, top, r, 1] features, float[batch, top, r] activations, float[batch, top, r] contributions,
    float[batch, top] omitted
)
{
    size = Abs (every_contribution)
    largest, place = TopK (size, max_reasons)
    last = Constant <value_ints: ints = [-1]> ()
    deep_place = Unsqueeze (place, last)
    features = GatherElements <axis: int = 2> (every_feature, deep_place)
    activations = GatherElements <axis: int = 2> (every_activation, place)
    contributions = GatherElements <axis: int = 2> (every_contribution, place)
    all = ReduceSum <keepdims: int = 0> (every_contribution, last)
    told = ReduceSum <keepdims: int = 0> (contributions, last)
    omitted = Sub (all, told)
}
"""

# Weights of the best classes, which both fragments below read.
TOP_WEIGHT = """
<ir_version: 10, opset_import: ["" : 20]>
top_weight (int64[batch, top] classes, float[classes, features] head_weight) => (float[batch, top, features] top_weight)
{
    top_weight = Gather (head_weight, classes)
}
"""

# (w_A - w_B) f for the two best classes A and B: why A and not B. `sign` is 1, -1, 0, 0, ...
CONTRAST = """
<ir_version: 10, opset_import: ["" : 20]>
contrast (
    float[batch, features] pooled, float[batch, top, features] top_weight, float[1, top] sign, int64[1] max_reasons
) => (int64[batch, r] features, float[batch, r] contributions, float[batch, features] every)
{
    middle = Constant <value_ints: ints = [1]> ()
    difference = MatMul (sign, top_weight)
    weight = Squeeze (difference, middle)
    every = Mul (weight, pooled)
    size = Abs (every)
    largest, features = TopK (size, max_reasons)
    contributions = GatherElements <axis: int = 1> (every, features)
}
"""

# What all of them add up to; where there is evidence by cell, its sums say so already.
TOTAL = """
<ir_version: 10, opset_import: ["" : 20]>
contrast_total (float[batch, features] every) => (float[batch] total)
{
    last = Constant <value_ints: ints = [-1]> ()
    total = ReduceSum <keepdims: int = 0> (every, last)
}
"""

# The map with its cells in one row.
BY_CELL = """
<ir_version: 10, opset_import: ["" : 20]>
by_cell (float[batch, features, rows, columns] map) => (float[batch, features, cells] by_cell)
{
    flat_shape = Constant <value_ints: ints = [0, 0, -1]> ()
    by_cell = Reshape (map, flat_shape)
}
"""

# sum_j w_cj X_j(u) / cells: the class activation map in logits, so that its sum + bias is the logit.
EVIDENCE = """
<ir_version: 10, opset_import: ["" : 20]>
evidence (
    float[batch, features, number] by_cell, float[batch, top, features] top_weight, float[1] cells, int64[4] shape
) => (float[batch, top, rows, columns] evidence)
{
    sum = MatMul (top_weight, by_cell)
    mean = Div (sum, cells)
    evidence = Reshape (mean, shape)
}
"""

# The same where the final layer has a weight for each cell: sum_k w_c(k,u) X_k(u).
FLAT_EVIDENCE = """
<ir_version: 10, opset_import: ["" : 20]>
evidence (
    float[batch, channels, rows, columns] map, int64[batch, top] classes, float[classes, channels, cells] cell_weight,
    int64[4] shape
) => (float[batch, top, rows, columns] evidence)
{
    one_shape = Constant <value_ints: ints = [0, 0, -1]> ()
    channel_axis = Constant <value_ints: ints = [2]> ()
    one_axis = Constant <value_ints: ints = [1]> ()
    by_cell = Reshape (map, one_shape)
    spread = Unsqueeze (by_cell, one_axis)
    weight = Gather (cell_weight, classes)
    each = Mul (weight, spread)
    flat = ReduceSum <keepdims: int = 0> (each, channel_axis)
    evidence = Reshape (flat, shape)
}
"""


@dataclass(frozen=True, slots=True)
class Head:
    """A final linear layer.

    Attributes:
        weight: (classes, features) float32.
        bias: (classes,) float32.
    """

    weight: Float32Array
    bias: Float32Array


@dataclass(slots=True)
class Histogram:
    """Counts, per class, how often each feature is among a picture's k1 strongest; fed batch by batch.

    Attributes:
        head: the final layer; its weights rank features under every rule but "feature".
        k1: features counted per picture.
        rule: what ranks feature j of a picture of class c: the pooled feature f_j ("feature", the paper), its
            contribution W_cj f_j, the size of that, the weight W_cj alone or its size, or chance, the control.
        counts: (classes, features) so far.
        total: (classes, features) sum of the scores so far.
        pictures: (classes,) so far.
    """

    head: Head
    k1: int
    rule: Rule = "contribution"
    counts: Int64Array = field(init=False)
    total: Float64Array = field(init=False)
    pictures: Int64Array = field(init=False)
    _chance: Float64Array = field(init=False)

    def __post_init__(self) -> None:
        classes, features = self.head.weight.shape
        if not 1 <= self.k1 <= features:
            raise InvalidInputError("k1", f"is {self.k1}; expected 1 to {features}, the number of features")
        self.counts = np.zeros((classes, features), np.int64)
        self.total = np.zeros((classes, features))
        self.pictures = np.zeros(classes, np.int64)
        self._chance = np.random.default_rng(0).random((classes, features))

    def add(self, pooled: Float32Array, label: Int64Array) -> None:
        """Count a batch: `pooled` (batch, features), `label` (batch,) the true classes."""
        score = self._score(pooled, label)
        strongest = _strongest(score, self.k1)
        np.add.at(self.counts, (label[:, None], strongest), 1)
        np.add.at(self.total, label, score)
        np.add.at(self.pictures, label, 1)

    def _score(self, pooled: Float32Array, label: Int64Array) -> npt.NDArray[np.floating[Any]]:
        if self.rule == "feature":
            return pooled
        if self.rule == "random":
            return self._chance[label]
        weight = self.head.weight[label]
        if self.rule in ("weight", "absolute_weight"):
            return weight if self.rule == "weight" else abs(weight)
        contribution = pooled * weight
        return contribution if self.rule == "contribution" else abs(contribution)

    def index_sets(self, k2: int) -> Int64Array:
        """Return the k2 most frequent features of each class, (classes, k2), most frequent first.

        Ties: higher class-mean score first, then the lower feature number.

        Raises:
            InvalidInputError: k2 does not fit, or a class had no picture.
        """
        features = self.counts.shape[1]
        if not 1 <= k2 <= features:
            raise InvalidInputError("k2", f"is {k2}; expected 1 to {features}, the number of features")
        if not self.pictures.all():
            empty = np.flatnonzero(self.pictures == 0).tolist()
            raise InvalidInputError("data", f"has no picture of class {_some(empty)}; every class needs one")
        mean = self.total / self.pictures[:, None]
        number = np.broadcast_to(np.arange(features), mean.shape)
        order = np.lexsort((number, -mean, -self.counts), axis=1)
        return np.ascontiguousarray(order[:, :k2])


def _strongest(score: npt.NDArray[np.floating[Any]], count: int) -> Int64Array:
    """Return the places of the `count` largest of each row, any order; of equal ones those that come first."""
    if count == score.shape[1]:
        return np.broadcast_to(np.arange(count), score.shape)
    border = -np.partition(-score, count - 1, axis=1)[:, count - 1 : count]
    larger, equal = score > border, score == border
    wanted = count - larger.sum(1, keepdims=True)
    chosen = larger | (equal & (equal.cumsum(1) <= wanted))
    return np.nonzero(chosen)[1].reshape(len(score), count)


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (" ..." if len(numbers) > 5 else "")


def check_index_sets(document: object, classes: int, features: int) -> Int64Array:
    """Return given index sets, JSON {class number: [feature numbers]}, as (classes, k) padded with -1.

    Raises:
        InvalidInputError: a class is missing, or a feature is out of range or named twice.
    """
    if not isinstance(document, dict) or {str(key) for key in document} != {str(c) for c in range(classes)}:
        raise InvalidInputError("indices", f"must map each class number 0..{classes - 1} to a list of feature numbers")
    sets = {int(key): value for key, value in document.items()}
    for number, chosen in sets.items():
        valid = isinstance(chosen, list) and chosen and all(type(j) is int and 0 <= j < features for j in chosen)
        if not valid or len(set(chosen)) != len(chosen):
            raise InvalidInputError(
                "indices", f"of class {number} must be different feature numbers from 0 to {features - 1}"
            )
    padded = np.full((classes, max(map(len, sets.values()))), -1, np.int64)
    for number, chosen in sets.items():
        padded[number, : len(chosen)] = chosen
    return padded


def split_head(head: Head, sets: Int64Array) -> tuple[Float32Array, Float32Array]:
    """Split a final layer by the index sets (classes, k; -1 pads).

    Returns:
        The weights of the chosen features (classes, k; 0 where padded) and the weights of all others
        (classes, features; 0 at the chosen).
    """
    rows = np.arange(len(sets))[:, None]
    weight = np.where(sets >= 0, head.weight[rows, sets], 0).astype(np.float32)
    return weight, np.where(membership(head, sets), 0, head.weight).astype(np.float32)


def membership(head: Head, sets: Int64Array) -> npt.NDArray[np.bool_]:
    """Return (classes, features): whether feature j is in the set of class c."""
    chosen = np.zeros((len(sets), head.weight.shape[1] + 1), bool)
    chosen[np.arange(len(sets))[:, None], sets] = True  # -1 lands in the extra column
    return chosen[:, :-1]
