"""The ledger as ONNX Runtime computes it, against the literal sum, for every class."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from analyzers.class_features import LEDGER, Head, split_head
from analyzers.runtime import Tensors, open_session
from tests import oracles


def run(head: Head, sets: np.ndarray, pooled: np.ndarray, max_classes: int) -> Tensors:
    """Run the fragment on features (batch, features)."""
    weight, rest_weight = split_head(head, sets)
    feeds = {
        "pooled": pooled,
        "logits": pooled @ head.weight.T + head.bias,
        "max_classes": np.array([max_classes], np.int64),
        "index": sets[:, :, None],
        "weight": weight,
        "rest_weight": rest_weight,
        "class_bias": head.bias,
        "head_weight": head.weight,
    }
    return open_session(onnx.parser.parse_model(LEDGER).SerializeToString()).run(feeds)


def random_head(classes: int, features: int) -> Head:
    random = np.random.default_rng(classes)
    weight = random.normal(0, 1, (classes, features)).astype(np.float32)
    return Head(weight, random.normal(0, 1, classes).astype(np.float32))


def ragged_sets(classes: int, features: int, k: int) -> np.ndarray:
    """Return different features for each class, padded where the class's number is odd."""
    random = np.random.default_rng(0)
    sets = np.stack([random.permutation(features)[:k] for _ in range(classes)])
    sets[1::2, k // 2 + 1 :] = -1
    return sets


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize(
    ("classes", "features", "k", "max_classes"),
    [(4, 9, 3, 4), (4, 9, 9, 2), (1, 3, 1, 1), (30, 64, 5, 20), (2, 1, 1, 2)],
)
def test_every_class_gets_the_literal_ledger(batch: int, classes: int, features: int, k: int, max_classes: int) -> None:
    head, sets = random_head(classes, features), ragged_sets(classes, features, k)
    pooled = np.random.default_rng(1).normal(0.5, 1, (batch, features)).astype(np.float32)
    answer = run(head, sets, pooled, max_classes)
    assert answer["classes"].shape == (batch, max_classes)
    for row in range(batch):
        for c in range(classes):
            chosen = [int(j) for j in sets[c] if j >= 0]
            own, rest, logit = oracles.ledger(pooled[row], head.weight, head.bias, c, chosen)
            assert answer["rest"][row, c] == pytest.approx(rest, abs=1e-4)
            if c not in answer["classes"][row]:
                continue
            rank = answer["classes"][row].tolist().index(c)
            assert answer["features"][row, rank, :, 0].tolist() == sets[c].tolist()
            for place, feature in enumerate(chosen):
                assert answer["activations"][row, rank, place] == pooled[row, feature]
                assert answer["contributions"][row, rank, place] == pytest.approx(own[feature], abs=1e-5)
            assert not answer["contributions"][row, rank, len(chosen) :].any()
            assert answer["bias"][row, rank] == head.bias[c]
            total = answer["contributions"][row, rank].sum() + answer["rest"][row, c] + answer["bias"][row, rank]
            assert total == pytest.approx(logit, abs=1e-4)


def test_a_ledger_in_numbers() -> None:
    head = Head(np.array([[2, -1, 3], [1, 1, 1]], np.float32), np.array([10, 20], np.float32))
    answer = run(head, np.array([[2, 0], [1, -1]]), np.array([[1, 4, 5]], np.float32), 2)
    assert answer["classes"].tolist() == [[1, 0]]  # logits 23 and 30
    assert answer["features"][0, :, :, 0].tolist() == [[1, -1], [2, 0]]
    assert answer["contributions"].tolist() == [[[4, 0], [15, 2]]]
    assert answer["rest"].tolist() == [[-4, 6]]
    assert answer["bias"].tolist() == [[20, 10]]


def test_the_best_classes_come_first_and_of_equals_the_lower_number() -> None:
    head = Head(np.array([[1], [3], [3], [2]], np.float32), np.zeros(4, np.float32))
    answer = run(head, np.zeros((4, 1), np.int64), np.array([[1.0]], np.float32), 3)
    assert answer["classes"].tolist() == [[1, 2, 3]]


def test_a_set_of_every_feature_leaves_no_rest() -> None:
    head = random_head(3, 6)
    answer = run(head, np.tile(np.arange(6), (3, 1)), np.ones((2, 6), np.float32), 3)
    assert not answer["rest"].any()
