"""A final layer decomposed into class subspaces, fitted in numpy alone (Decomposing the Deep, arXiv 2112.07719).

z'_c = b_c + sum_{j in I_c} W_cj f_j: each class reads its own features and nothing else. The weights may stay as they
are, be refitted in closed form to the full layer's logits, or be tuned to the labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from analyzers.class_features import Head, Int64Array, membership
from analyzers.errors import InvalidInputError
from analyzers.progress import track

RIDGE = 1e-2

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


def decompose(head: Head, sets: Int64Array) -> Head:
    """Return the layer as a dense one whose other weights are 0; biases stay (the paper's own choice).

    A masked dense layer is faster in ONNX Runtime than gathering the features of each class, at every size.

    Args:
        head: the full layer.
        sets: (classes, k) feature numbers; -1 pads.
    """
    return Head(np.where(membership(head, sets), head.weight, 0).astype(np.float32), head.bias)


@dataclass(slots=True)
class Moments:
    """Sums over pictures that a refit needs, in memory that does not grow with them; fed batch by batch.

    Attributes:
        head: the full layer, whose logits are to be approximated.
        pictures: how many so far.
        features: (features,) sum of the features.
        products: (features, features) sum of their products.
    """

    head: Head
    pictures: int = 0
    features: Float64Array = field(init=False)
    products: Float64Array = field(init=False)

    def __post_init__(self) -> None:
        width = self.head.weight.shape[1]
        self.features, self.products = np.zeros(width), np.zeros((width, width))

    def add(self, pooled: Float32Array) -> None:
        """Count a batch of features (batch, features)."""
        self.pictures += len(pooled)
        self.features += pooled.sum(0, dtype=np.float64)
        # In single precision within a batch, which is exact enough and twice as fast; summed up in double.
        self.products += pooled.T @ pooled

    def refit(self, sets: Int64Array, ridge: float = RIDGE) -> Head:
        """Return the decomposed layer whose logits come closest to the full layer's on these pictures.

        For each class the least squares of z_c on its own features and a constant, with a penalty of `ridge` times
        each feature's variance on its squared weight. No loop over pictures: the full logits are linear in the
        features, so their products follow from those of the features.

        Raises:
            InvalidInputError: there was no picture.
        """
        if not self.pictures:
            raise InvalidInputError("data", "holds no picture; a refit needs some")
        mean = self.features / self.pictures
        covariance = self.products / self.pictures - np.outer(mean, mean)
        with_logits = covariance @ self.head.weight.T.astype(np.float64)
        mean_logits = self.head.weight.astype(np.float64) @ mean + self.head.bias
        weight = np.zeros(self.head.weight.shape)
        for number, row in enumerate(sets):
            own = row[row >= 0]
            square = covariance[np.ix_(own, own)]
            penalty = ridge * np.diag(square) + 1e-12 + 1e-9 * np.trace(square)
            weight[number, own] = np.linalg.solve(square + np.diag(penalty), with_logits[own, number])
        bias = mean_logits - weight @ mean
        return Head(weight.astype(np.float32), bias.astype(np.float32))


@dataclass(frozen=True, slots=True)
class Tuning:
    """How to tune a decomposed layer to labels.

    Attributes:
        epochs: passes over the features.
        learning_rate: of Adam.
        batch_size: pictures a step.
        distil: weight of staying near the full layer's probabilities, against that of the labels, 0 to 1.
        seed: of the order of the pictures.
    """

    epochs: int = 20
    learning_rate: float = 1e-3
    batch_size: int = 64
    distil: float = 0.0
    seed: int = 0


def tune(full: Head, start: Head, sets: Int64Array, pooled: Float32Array, label: Int64Array, how: Tuning) -> Head:
    """Return the decomposed layer after Adam on the cross-entropy of its softmax; its zeros stay zeros.

    Args:
        full: the full layer, which teaches where `how.distil` is not 0.
        start: the decomposed layer to start from.
        sets: (classes, k) feature numbers; -1 pads.
        pooled: (pictures, features).
        label: (pictures,) true classes.
        how: the loop's settings.
    """
    if not 0 <= how.distil <= 1 or how.epochs < 1 or how.batch_size < 1 or not how.learning_rate > 0:
        raise InvalidInputError("tuning", f"cannot be {how}; distil goes from 0 to 1, the others are above 0")
    own = membership(full, sets)
    # Features differ in size by orders of magnitude; steps are taken in units of each one's spread.
    scale = np.where((spread := pooled.std(0)) > 0, spread, 1).astype(np.float64)
    parameters = np.concatenate([start.weight * scale, start.bias[:, None]], axis=1).astype(np.float64)
    mask = np.concatenate([own, np.ones((len(own), 1), bool)], axis=1)
    first, second, step = np.zeros_like(parameters), np.zeros_like(parameters), 0
    random = np.random.default_rng(how.seed)
    inputs = np.concatenate([pooled / scale, np.ones((len(pooled), 1))], axis=1)
    truth = np.eye(len(own))[label]
    if how.distil:
        truth = (1 - how.distil) * truth + how.distil * _softmax(pooled @ full.weight.T + full.bias)
    for _ in track(range(how.epochs), "tuning the final layer", how.epochs):
        order = random.permutation(len(label))
        for rows in np.array_split(order, max(1, len(label) // how.batch_size)):
            step += 1
            error = _softmax(inputs[rows] @ parameters.T) - truth[rows]
            gradient = np.where(mask, error.T @ inputs[rows] / len(rows), 0)
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            change = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            parameters -= how.learning_rate * change
    weight = np.where(own, parameters[:, :-1] / scale, 0)
    return Head(weight.astype(np.float32), parameters[:, -1].astype(np.float32))


def _softmax(logits: npt.NDArray[np.floating]) -> Float64Array:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True), np.float64)
