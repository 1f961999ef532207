"""Rank correlation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the rank of each value from 0, the mean of their ranks for equal ones."""
    order = np.argsort(values, kind="stable")
    place = np.empty(len(values))
    place[order] = np.arange(len(values))
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.bincount(group, place) / count)[group])


def spearman(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Return Spearman's rank correlation of two rows of numbers; NaN where one of them is constant."""
    first, second = (ranks(np.ravel(values)) for values in (one, other))
    first, second = first - first.mean(), second - second.mean()
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / size) if size > 0 else float("nan")
