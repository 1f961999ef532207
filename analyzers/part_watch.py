"""Run an explained model over marked pictures and note where its filters peak, also under noise.

Memory: 12 bytes a picture and filter for the peaks, and at most `MAX_MAP_PICTURES` pictures of each class with the
maps of the filters whose own class it is, that is 4 x 200 x filters x cells bytes whatever the number of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.manifest import Parts
from analyzers.metrics import Int64Array
from analyzers.part_metrics import Plane
from analyzers.pictures import Pictures
from analyzers.pixels import Float32Array, UInt8Array, to_model_input
from analyzers.sightings import Sightings

MAX_MAP_PICTURES = 200
NOISE = 0.2  # EvalProtoPNet's, in pictures normalised as for ImageNet
NOISE_LIMIT = 0.25
IMAGENET_STD = np.array((0.229, 0.224, 0.225), np.float32).reshape(1, 3, 1, 1)


@dataclass(frozen=True, slots=True)
class Eye:
    """A model that can be watched.

    Attributes:
        run: from pictures (batch, 3, height, width) to its outputs.
        section: its parts.
        pooled: the output with the pooled features, (batch, features).
        map: the output with the filters' map, after the part template where there is one.
    """

    run: Callable[[Float32Array], Mapping[str, npt.NDArray[Any]]]
    section: Parts
    pooled: str
    map: str


@dataclass(frozen=True, slots=True)
class Watched:
    """What was seen.

    Attributes:
        seen: peaks and marks.
        strength: (pictures, filters) activation at the peak.
        pooled: (pictures, features) of the final layer.
        maps: for each class rows of `seen` and the maps there of the filters whose own class it is.
    """

    seen: Sightings
    strength: Float32Array
    pooled: Float32Array
    maps: dict[int, tuple[Int64Array, Float32Array]]


def watch(eye: Eye, batches: Iterable[UInt8Array], marked: Pictures, category: Int64Array) -> Watched:
    """Run pictures through a model, as they are and with noise.

    Args:
        eye: the model.
        batches: the pictures (batch, height, width, 3), in the order of `marked`.
        marked: their labels and marks.
        category: (filters,) own class of each filter.
    """
    parts = marked.parts
    if parts is None:
        raise ValueError("the pictures carry no part marks")
    noise = np.random.default_rng(0)
    cell, noisy, strength, pooled = [], [], [], []
    shelf = _Shelf(eye, category)
    size, start = (1, 1), 0
    for pixels in batches:
        images = to_model_input(pixels)
        answer = eye.run(images)
        shelf.add(answer, marked.label[start : start + len(images)], start)
        cell.append(_cells(eye.section, answer))
        strength.append(answer[eye.section.score].astype(np.float32))
        pooled.append(answer[eye.pooled].astype(np.float32))
        disturbance = np.clip(NOISE * noise.standard_normal(images.shape, np.float32), -NOISE_LIMIT, NOISE_LIMIT)
        noisy.append(_cells(eye.section, eye.run(images + disturbance * IMAGENET_STD)))
        size, start = pixels.shape[1:3], start + len(images)
    scale, peak = np.array((size[1], size[0])), np.concatenate(strength)
    seen = Sightings(
        cell=np.concatenate(cell),
        noisy=np.concatenate(noisy),
        strength=peak,
        landmark=parts.xy.astype(np.float64) * scale,
        box=parts.box.astype(np.float64) * np.tile(scale, 2),
        label=marked.label,
        group=marked.group,
        category=category,
        plane=plane_of(eye.section, size),
    )
    return Watched(seen, peak, np.concatenate(pooled), shelf.maps())


def plane_of(section: Parts, size: tuple[int, int]) -> Plane:
    """Return where the map's cells lie in pictures of `size` (height, width)."""
    grid = section.grid
    rows, columns = (grid.offset[axis] + grid.stride[axis] * np.arange(float(grid.cells[axis])) for axis in (0, 1))
    return Plane(size, rows, columns)


def _cells(section: Parts, answer: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int32]:
    """Return the peaks' cells, -1 where a filter did not fire."""
    return np.where(answer[section.score] > 0, answer[section.cell], -1).astype(np.int32)


@dataclass(slots=True)
class _Shelf:
    """The first maps of each class, of the class's own filters."""

    eye: Eye
    category: Int64Array
    rows: dict[int, list[int]] = field(default_factory=dict)
    kept: dict[int, list[Float32Array]] = field(default_factory=dict)

    def add(self, answer: Mapping[str, npt.NDArray[Any]], label: Int64Array, start: int) -> None:
        """Keep what still fits of a batch whose first picture has number `start`; maps of another grid do not."""
        maps = answer[self.eye.map]
        if maps.shape[1:] != (self.eye.section.filters, *self.eye.section.grid.cells):
            return
        for row, number in enumerate(map(int, label)):
            own = self.category == number
            rows = self.rows.setdefault(number, [])
            if len(rows) < MAX_MAP_PICTURES and own.any():
                rows.append(start + row)
                self.kept.setdefault(number, []).append(np.maximum(maps[row][own], 0).astype(np.float32))

    def maps(self) -> dict[int, tuple[Int64Array, Float32Array]]:
        """Return rows and maps (pictures, filters, height, width) by class."""
        return {number: (np.array(self.rows[number]), np.stack(maps)) for number, maps in self.kept.items()}
