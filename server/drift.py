"""Drift: how far what a model answers lately is from the baseline in its file.

A run only leaves copies of its numbers in rings of fixed size; they are compared when somebody asks.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.baseline import (
    Baseline,
    FloatArray,
    Int64Array,
    Outputs,
    above,
    counts_of,
    gathered,
    numbers_of,
    sources,
)
from analyzers.manifest import Manifest

WINDOW = 1000  # pictures of each process
MAX_NUMBERS = 4_000_000  # that one ring holds; of models with more classes than 4,000 fewer pictures are remembered


@dataclass(frozen=True, slots=True)
class Window:
    """Histograms of the last pictures beside those of the baseline, (numbers, bins) counts by what they are of."""

    baseline: Mapping[str, Int64Array]
    recent: Mapping[str, Int64Array]

    def joined(self, other: Window) -> Window:
        """Return both processes' pictures together; the other's are left out where its baseline is another."""
        same = self.baseline.keys() == other.baseline.keys() and all(
            np.array_equal(counts, other.baseline[what]) for what, counts in self.baseline.items()
        )
        if not same:
            return self
        recent = dict(self.recent)
        for what, counts in other.recent.items():
            recent[what] = recent[what] + counts if what in recent else counts
        return Window(self.baseline, recent)


class _Ring:
    """The last rows of a table."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._table: npt.NDArray[np.float32] | None = None
        self._next = 0
        self._filled = 0

    def put(self, values: npt.NDArray[Any]) -> None:
        """Add rows, the oldest ones go."""
        if self._table is None:
            self._rows = max(1, min(self._rows, MAX_NUMBERS // values.shape[1]))
            self._table = np.zeros((self._rows, values.shape[1]), np.float32)
        values = values[-self._rows :]
        end = self._next + len(values)
        if end <= self._rows:
            self._table[self._next : end] = values
        else:
            fits = self._rows - self._next
            self._table[self._next :] = values[:fits]
            self._table[: end - self._rows] = values[fits:]
        self._next = end % self._rows
        self._filled = min(self._rows, self._filled + len(values))

    def rows(self) -> npt.NDArray[np.float32]:
        """Return a copy of all of them, in any order."""
        return np.zeros((0, 0), np.float32) if self._table is None else self._table[: self._filled].copy()


class Drift:
    """Remembers the last pictures' numbers of one model; thread-safe.

    Args:
        baseline: of the file.
        manifest: of the file.
        pictures: how many are remembered.
    """

    def __init__(self, baseline: Baseline, manifest: Manifest, pictures: int = WINDOW) -> None:
        self._baseline = baseline.histograms()
        self._edges = baseline.edges()
        self._lock = threading.Lock()
        self._sources = {
            source: (tensors, _Ring(pictures))
            for source, tensors in sources(manifest).items()
            if source == "scores" or source in self._baseline
        }

    def watch(self, outputs: Outputs) -> None:
        """Remember a run's numbers, as many of them as it answered."""
        with self._lock:
            for source, (tensors, ring) in self._sources.items():
                if (values := gathered(outputs, source, tensors)) is not None:
                    ring.put(values)

    def window(self) -> Window:
        """Return the histograms of what is remembered."""
        with self._lock:
            tables = {source: ring.rows() for source, (_, ring) in self._sources.items()}
        recent: dict[str, Int64Array] = {}
        for source, values in tables.items():
            if len(values):
                recent |= {what: self._counts(what, each) for what, each in numbers_of(source, values).items()}
        return Window(self._baseline, recent)

    def _counts(self, what: str, values: FloatArray) -> Int64Array:
        if what == "classes":
            classes = self._baseline["classes"].shape[1]
            return np.bincount(values[:, 0].astype(np.int64), minlength=classes)[None].astype(np.int64)
        return counts_of(above(values, self._edges[what]), len(values))
