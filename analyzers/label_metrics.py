"""How well yes or no is told for each class by itself: average precision, and accuracy with 0 as the threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Figure = dict[str, Any]
FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]


def average_precision(score: FloatArray, truth: BoolArray) -> npt.NDArray[np.float64]:
    """Return sum_n (R_n - R_{n-1}) P_n of each class, (classes,); NaN where no picture has it.

    P_n and R_n are precision and recall of the pictures that score at least the n-th highest of all different scores,
    so that pictures of equal score count together, in whichever order they come.

    Args:
        score: (pictures, classes).
        truth: (pictures, classes), whether the picture has the class.
    """
    result = np.full(score.shape[1], np.nan)
    for number in np.flatnonzero(truth.any(0)):
        order = np.argsort(-score[:, number], kind="stable")
        ranked, hits = score[order, number], np.cumsum(truth[order, number])
        last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of equal scores
        gained = np.diff(hits[last], prepend=0)
        result[number] = (gained * hits[last] / (last + 1)).sum() / hits[-1]
    return result


def precision_figure(score: FloatArray, truth: BoolArray) -> Figure:
    """Return the mean average precision over classes that some picture has; a score that knows nothing has theirs."""
    known = truth.any(0)
    value = average_precision(score, truth)[known].mean() if known.any() else None
    blind = truth[:, known].mean() if known.any() else None
    return {
        "value": None if value is None else float(value),
        "n": len(score),
        "classes": int(known.sum()),
        "controls": {"random": None if blind is None else float(blind)},
    }


def accuracy_figure(score: FloatArray, truth: BoolArray) -> Figure:
    """Return the share of right answers over all pictures and classes, where a score above 0 says yes."""
    right = ((score > 0) == truth).mean(1)  # pictures are independent of each other, classes are not
    return {
        "value": float(right.mean()),
        "n": len(score),
        "standard_error": float(right.std() / np.sqrt(len(right))),
        "controls": {"always_no": float(1 - truth.mean())},
    }
