"""Where filters peaked and where parts are, in the same pictures; and what stands in for a filter as control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.metrics import BoolArray, FloatArray, Int64Array
from analyzers.part_metrics import Plane

BOOTSTRAPS = 50

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sightings:
    """Where filters peaked and where parts are in the same pictures; lengths in pixels of the model's input.

    Attributes:
        cell: (pictures, filters) row-major cell of each peak; -1 where the filter did not fire. The number of
            cells itself stands for the picture's exact middle.
        noisy: the same for the disturbed pictures.
        strength: (pictures, filters) activation at the peak; None ranks no pictures.
        landmark: (pictures, parts, 2) centres (x, y), NaN where not marked.
        box: (pictures, parts, 4) boxes x0, y0, x1, y1, NaN alike.
        label: (pictures,) classes.
        group: (pictures,) equal for crops of one photograph.
        category: (filters,) each filter's own class.
        plane: the picture plane and the map's cells on it.
    """

    cell: Int32Array
    noisy: Int32Array
    strength: Float32Array | None
    landmark: FloatArray
    box: FloatArray
    label: Int64Array
    group: Int64Array
    category: Int64Array
    plane: Plane

    @property
    def places(self) -> FloatArray:
        """(cells + 2, 2): the cells' centres inside the picture, the picture's middle, and NaN for -1."""
        height, width = self.plane.size
        inside = np.clip(self.plane.centres, 0, (width, height))
        return np.concatenate((inside, [[width / 2, height / 2], [np.nan, np.nan]]))

    @property
    def cells(self) -> int:
        """How many cells a map has."""
        return len(self.plane.rows) * len(self.plane.columns)

    @property
    def peak(self) -> FloatArray:
        """(pictures, filters, 2), NaN where a filter did not fire."""
        return np.asarray(self.places[self.cell])

    @property
    def visible(self) -> BoolArray:
        """(pictures, parts) whether the part is marked."""
        return np.asarray(np.isfinite(self.landmark).all(-1))

    @property
    def diagonal(self) -> float:
        """Of the picture."""
        return float(np.hypot(*self.plane.size))

    def take(self, rows: npt.NDArray[Any], filters: npt.NDArray[Any] | slice = slice(None)) -> Sightings:
        """Return the pictures at `rows` and those filters."""
        return replace(
            self,
            cell=self.cell[rows][:, filters],
            noisy=self.noisy[rows][:, filters],
            strength=None if self.strength is None else self.strength[rows][:, filters],
            landmark=self.landmark[rows],
            box=self.box[rows],
            label=self.label[rows],
            group=self.group[rows],
            category=self.category[filters],
        )


def perfect_cells(seen: Sightings) -> list[Int32Array]:
    """Return for each landmark the cell nearest to it, (pictures, 1); -1 where it is not marked."""
    places = seen.places[:-2]
    result = []
    for k in range(seen.landmark.shape[1]):
        distance = np.linalg.norm(seen.landmark[:, None, k] - places, axis=-1)
        known = np.isfinite(distance).all(1)
        nearest = np.where(known[:, None], distance, 0).argmin(1)
        result.append(np.where(known, nearest, -1).astype(np.int32)[:, None])
    return result


def random_cells(seen: Sightings, seed: int) -> Int32Array:
    """Return a cell drawn evenly for each picture and filter, (pictures, filters)."""
    return np.random.default_rng(seed).integers(0, seen.cells, seen.cell.shape, np.int32)


def bootstrap(group: Int64Array) -> Iterator[Int64Array]:
    """Yield the rows of samples of as many photographs as there are, drawn with repetition."""
    random = np.random.default_rng(0)
    order = np.argsort(group, kind="stable")
    start = np.flatnonzero(np.diff(group[order], prepend=group[order[0]] - 1))
    photographs = np.split(order, start[1:])
    for _ in range(BOOTSTRAPS):
        yield np.concatenate([photographs[i] for i in random.integers(0, len(photographs), len(photographs))])
