"""How far two answers to the same pictures are apart: the one measurement behind every certificate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.certificate import Figure
from analyzers.manifest import ClassFeatures, Manifest, Parts

TOP = 5
_LARGEST = ("logit_difference", "completeness_gap")
_READ_ALONE = ("map_correlation",)

Answer = Mapping[str, npt.NDArray[Any]]


class Parity:
    """Collects what a model and its copy answer to the same pictures.

    Args:
        known: what the outputs mean, of both.
        section: the class features of it.
        weight: (classes, features) of the final layer, the model's.
    """

    def __init__(self, known: Manifest, section: ClassFeatures, weight: npt.NDArray[np.float32]) -> None:
        self.known, self.section, self.weight = known, section, weight
        self.lists: dict[str, list[npt.NDArray[Any]]] = {}

    def add(self, whole: Answer, copy: Answer, label: npt.NDArray[np.int64]) -> None:
        """Compare a batch of answers; `label` (batch,) the true classes."""
        section, scores = self.section, self.known.scores.tensor
        self._put("accuracy", whole[scores].argmax(1) == label)
        self._put("accuracy_of_copy", copy[scores].argmax(1) == label)
        best = whole[scores].argmax(1)
        same = best == copy[scores].argmax(1)
        self._put("same_class", same)
        self._put("logit_difference", abs(whole[scores] - copy[scores]).max(1))
        self._put("completeness_gap", completeness_gap(section, scores, copy))
        self._put("top_features_kept", top_kept(section, self.weight, whole, copy, best)[same])
        if section.evidence is not None:
            maps = [answer[section.evidence][:, 0].reshape(len(label), -1) for answer in (whole, copy)]
            self._put("map_correlation", correlation(maps[0], maps[1])[same])
        if (parts := self.known.parts) is not None:
            steps = _steps(parts, whole[parts.cell], copy[parts.cell])[whole[parts.score] > 0]
            self._put("peaks_moved", steps > 0)
            self._put("peaks_moved_far", steps > 1)

    def _put(self, name: str, values: npt.NDArray[Any]) -> None:
        self.lists.setdefault(name, []).append(np.asarray(values, np.float64))

    def figures(self) -> dict[str, Figure]:
        """Return what was found: largest gaps, the median correlation, and of everything else the mean."""
        found: dict[str, Figure] = {}
        for name, several in self.lists.items():
            values = np.concatenate(several)
            n = len(values)
            if name in _LARGEST:
                found[name] = Figure(value=float(values.max(initial=0)), n=n)
            elif not n:
                found[name] = Figure(value=None, n=0)
            elif name in _READ_ALONE:
                low, middle = np.percentile(values, [1, 50])
                found[name] = Figure(value=float(middle), n=n, first_percentile=float(low))
            else:
                error = None if n == 1 else float(values.std(ddof=1) / np.sqrt(n))
                found[name] = Figure(value=float(values.mean()), n=n, standard_error=error)
        return found


def completeness_gap(section: ClassFeatures, scores: str, answer: Answer) -> npt.NDArray[np.float64]:
    """Return how far an answer's ledgers and evidence are from its own logits, as shares of the largest logit."""
    top, bias = answer[section.classes], answer[section.bias]
    total = answer[section.contributions].sum(-1, dtype=np.float64) + bias
    total += np.take_along_axis(answer[section.rest], top, 1)
    if section.omitted is not None:
        total += answer[section.omitted]
    logits = answer[scores].astype(np.float64)
    own = np.take_along_axis(logits, top, 1)
    gap = abs(total - own).max(1)
    if section.evidence is not None:
        gap = np.maximum(gap, abs(answer[section.evidence].sum((2, 3), dtype=np.float64) + bias - own).max(1))
    return np.asarray(gap / np.maximum(1.0, abs(logits).max(1)))


def top_kept(
    section: ClassFeatures, weight: npt.NDArray[np.float32], whole: Answer, copy: Answer, best: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return which share of the largest contributions to a class, of all features, the copy has among its largest."""
    count = min(TOP, weight.shape[1])
    sets = [
        np.argsort(-abs(weight[best] * answer[section.pooled]), axis=1, kind="stable")[:, :count]
        for answer in (whole, copy)
    ]
    return np.asarray((sets[0][:, :, None] == sets[1][:, None, :]).any(2).mean(1))


def correlation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return Pearson's correlation of each row; 1 where both are constant."""
    first, second = (rows - rows.mean(1, keepdims=True, dtype=np.float64) for rows in (one, other))
    size = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    product = (first * second).sum(1)
    constant = (abs(first - second).max(1) == 0).astype(np.float64)
    return np.asarray(np.where(size > 0, product / np.where(size > 0, size, 1), constant))


def _steps(parts: Parts, one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return how many cells lie between two peaks, along rows or columns, whichever is more."""
    columns = parts.grid.cells[1]
    return np.asarray(np.maximum(abs(one // columns - other // columns), abs(one % columns - other % columns)))
