"""Class-specific features, against the literal algorithm."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers.class_features import Head, Histogram, check_index_sets, membership, split_head
from analyzers.errors import InvalidInputError
from tests import oracles

CLASSES, FEATURES = 4, 9


def head(seed: int = 0) -> Head:
    random = np.random.default_rng(seed)
    return Head(
        random.normal(0, 1, (CLASSES, FEATURES)).astype(np.float32), random.normal(0, 1, CLASSES).astype(np.float32)
    )


def pooled(count: int = 60, seed: int = 1, levels: int = 0) -> np.ndarray:
    """Return features >= 0; with few levels there are many ties."""
    random = np.random.default_rng(seed)
    return (random.integers(0, levels, (count, FEATURES)) if levels else random.random((count, FEATURES))).astype(
        np.float32
    )


@pytest.mark.parametrize("rule", ["feature", "contribution"])
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (3, 5), (5, 3), (9, 9)])
@pytest.mark.parametrize("levels", [0, 3])
def test_index_sets_are_those_of_the_algorithm(rule: str, k1: int, k2: int, levels: int) -> None:
    features, label = pooled(levels=levels), np.arange(60) % CLASSES
    histogram = Histogram(head(), k1, rule)
    histogram.add(features, label)
    expected = oracles.index_sets(features, label, head().weight, k1, k2, rule)
    assert histogram.index_sets(k2).tolist() == expected


@pytest.mark.parametrize("size", [1, 7, 60])
def test_batches_do_not_matter(size: int) -> None:
    features, label = pooled(), np.arange(60) % CLASSES
    whole, parts = Histogram(head(), 3), Histogram(head(), 3)
    whole.add(features, label)
    for start in range(0, 60, size):
        parts.add(features[start : start + size], label[start : start + size])
    assert np.array_equal(whole.index_sets(4), parts.index_sets(4))


def test_a_literal_example() -> None:
    """Class 0 has feature 2 strongest twice and feature 0 once; class 1 has feature 1 always."""
    features = np.array([[1, 0, 5], [0, 1, 4], [9, 0, 1], [0, 3, 0]], np.float32)
    histogram = Histogram(Head(np.ones((2, 3), np.float32), np.zeros(2, np.float32)), 1, "feature")
    histogram.add(features, np.array([0, 0, 0, 1]))
    assert histogram.counts.tolist() == [[1, 0, 2], [0, 1, 0]]
    assert histogram.index_sets(2).tolist() == [[2, 0], [1, 0]]


@pytest.mark.parametrize("sets", [[[0, 1], [2, 3], [4, 5], [6, 8]], [[0, -1], [2, 3], [4, -1], [8, 7]]])
def test_contributions_rest_and_bias_add_up_to_the_logit(sets: list[list[int]]) -> None:
    layer, features = head(), pooled(5)
    index = np.array(sets)
    weight, rest_weight = split_head(layer, index)
    assert weight.shape == index.shape
    logits = features @ layer.weight.T + layer.bias
    contributions = weight[None] * features[:, index]
    np.testing.assert_allclose(contributions.sum(-1) + features @ rest_weight.T + layer.bias, logits, atol=1e-5)
    for c, chosen in enumerate(sets):
        own, rest, logit = oracles.ledger(features[0], layer.weight, layer.bias, c, [j for j in chosen if j >= 0])
        assert contributions[0, c].sum() == pytest.approx(sum(own.values()), abs=1e-5)
        assert (features @ rest_weight.T)[0, c] == pytest.approx(rest, abs=1e-5)
        assert logits[0, c] == pytest.approx(logit, abs=1e-5)
    assert membership(layer, index).sum() == sum(j >= 0 for chosen in sets for j in chosen)


@pytest.mark.parametrize("k", [0, -1, FEATURES + 1])
def test_k_must_fit_the_features(k: int) -> None:
    with pytest.raises(InvalidInputError, match=f"k1: is {k}; expected 1 to 9"):
        Histogram(head(), k)
    histogram = Histogram(head(), 1)
    histogram.add(pooled(), np.arange(60) % CLASSES)
    with pytest.raises(InvalidInputError, match=f"k2: is {k}; expected 1 to 9"):
        histogram.index_sets(k)


def test_a_class_without_pictures_is_named() -> None:
    histogram = Histogram(head(), 1)
    histogram.add(pooled(10), np.zeros(10, np.int64))
    with pytest.raises(InvalidInputError, match="no picture of class 1, 2, 3"):
        histogram.index_sets(1)


def test_given_index_sets_are_padded() -> None:
    sets = check_index_sets({"0": [1, 2], "1": [3], "2": [0, 4, 5], "3": [8]}, CLASSES, FEATURES)
    assert sets.tolist() == [[1, 2, -1], [3, -1, -1], [0, 4, 5], [8, -1, -1]]


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"0": [1], "1": [1], "2": [1]},
        {"0": [1], "1": [1], "2": [1], "3": [1], "4": [1]},
        {"0": [1], "1": [1], "2": [1], "x": [1]},
        {"0": [], "1": [1], "2": [1], "3": [1]},
        {"0": [9], "1": [1], "2": [1], "3": [1]},
        {"0": [-1], "1": [1], "2": [1], "3": [1]},
        {"0": [1, 1], "1": [1], "2": [1], "3": [1]},
        {"0": [1.5], "1": [1], "2": [1], "3": [1]},
        {"0": "12", "1": [1], "2": [1], "3": [1]},
        {"0": [True], "1": [1], "2": [1], "3": [1]},
    ],
)
def test_bad_index_sets_are_refused(document: object) -> None:
    with pytest.raises(InvalidInputError, match="indices: "):
        check_index_sets(document, CLASSES, FEATURES)
