"""Activations of any filter of any layer in all pictures, with no more on disk at a time than a limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.feature_cache import FeatureCache, Filters, Float32Array, MapSource, loads


class Shelf:
    """The feature caches of a run, one of them at a time on disk.

    Attributes:
        largest_bytes: the largest cache's size.
        passes: how often the pictures went through the network.
    """

    def __init__(self, source: MapSource, layers: Sequence[Filters], limit_bytes: int, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._loads = loads(layers, source.pictures, limit_bytes)
        self._open: tuple[int, FeatureCache] | None = None
        self.largest_bytes = max(sum(part.size_bytes(source.pictures) for part in load) for load in self._loads)
        self.passes = 0

    def activation(self, tensor: str, number: int, pictures: npt.NDArray[np.int64]) -> Float32Array:
        """Return F of one filter in some pictures, (pictures, height, width)."""
        return self._holding(tensor, number).filter(tensor, number, pictures)

    def factors(self, tensor: str, number: int) -> tuple[float, float]:
        """Return a filter's scale and floor; scale 0 for a dead filter, the same everywhere."""
        return self._holding(tensor, number).factors(tensor, number)

    def _holding(self, tensor: str, number: int) -> FeatureCache:
        place = next(
            place
            for place, load in enumerate(self._loads)
            if any(part.tensor == tensor and part.first <= number < part.stop for part in load)
        )
        if self._open is None or self._open[0] != place:
            if self._open is not None:
                self._open[1].close()
            cache = FeatureCache(self._loads[place], self._source.pictures, self._folder / f"maps{place}.bin")
            self.passes += cache.fill(self._source)
            self._open = place, cache
        return self._open[1]
