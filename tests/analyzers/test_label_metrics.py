"""Average precision and yes-or-no accuracy, by their definitions and in numbers."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers.label_metrics import accuracy_figure, average_precision, precision_figure
from tests import oracles


@pytest.mark.parametrize("levels", [3, 10**6])
def test_average_precision_is_its_definition_with_and_without_ties(levels: int) -> None:
    random = np.random.default_rng(0)
    score, truth = random.integers(0, levels, (40, 5)).astype(float), random.random((40, 5)) < 0.3
    expected = [oracles.average_precision(score[:, c], truth[:, c]) for c in range(5)]
    np.testing.assert_allclose(average_precision(score, truth), expected, rtol=1e-12)
    mixed = random.permutation(40)
    np.testing.assert_allclose(average_precision(score[mixed], truth[mixed]), expected, rtol=1e-12)


def test_average_precision_in_numbers() -> None:
    truth = np.array([[True], [False], [True], [False]])
    assert average_precision(np.array([[4.0], [3], [2], [1]]), truth)[0] == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([[4.0], [1], [3], [2]]), truth)[0] == 1
    assert average_precision(np.zeros((4, 1)), truth)[0] == 0.5  # knows nothing: the share of those that have it


def test_a_class_that_no_picture_has_is_left_out() -> None:
    truth = np.array([[True, False], [False, False]])
    score = np.array([[1.0, 0], [0, 1]])
    assert np.isnan(average_precision(score, truth)[1])
    assert precision_figure(score, truth) == {"value": 1.0, "n": 2, "classes": 1, "controls": {"random": 0.5}}
    nothing = precision_figure(score, np.zeros((2, 2), bool))
    assert (nothing["value"], nothing["classes"], nothing["controls"]["random"]) == (None, 0, None)


def test_a_score_above_zero_says_yes() -> None:
    truth = np.array([[True, False], [True, False], [False, False], [False, True]])
    figure = accuracy_figure(np.array([[1e-9, 0], [0, -1], [-1, -1], [1, 1]]), truth)
    assert figure["value"] == 6 / 8
    assert figure["controls"]["always_no"] == 5 / 8
    assert figure["standard_error"] == pytest.approx(np.std([1, 0.5, 1, 0.5]) / 2)
