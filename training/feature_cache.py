"""Feature maps of many pictures on disk, filter by filter: one byte a value and one scale a filter.

The learner visits one filter in all pictures at a time, networks give all filters of a few pictures: the cache turns
one into the other. It is a memory-mapped file, so the machine's memory holds what it can and the size is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from analyzers.errors import DataError
from analyzers.files import write_atomically

LEVELS = 255
FLOOR_QUANTILE = 0.9
DENSE_SHARE = 0.5  # filters that fire in more of the cells than this have a floor

Float32Array = npt.NDArray[np.float32]
Maps = Mapping[str, npt.NDArray[np.floating[Any]]]


class MapSource(Protocol):
    """Where feature maps come from.

    Attributes:
        pictures: how many there are.
    """

    pictures: int

    def batches(self, tensors: Sequence[str]) -> Iterator[Maps]:
        """Yield the maps of all pictures in order, a batch at a time: by tensor, (batch, filters, height, width)."""
        ...


@dataclass(frozen=True, slots=True)
class Filters:
    """Some filters of a layer.

    Attributes:
        tensor: the layer's conv map.
        cells: its (height, width).
        first: the first filter.
        stop: the one behind the last.
    """

    tensor: str
    cells: tuple[int, int]
    first: int
    stop: int

    def size_bytes(self, pictures: int) -> int:
        """Return what they take in the cache."""
        return (self.stop - self.first) * pictures * self.cells[0] * self.cells[1]


def loads(layers: Sequence[Filters], pictures: int, limit_bytes: int) -> list[list[Filters]]:
    """Divide layers, in their order, into loads that each fit the limit; a load is one pass through the network.

    Raises:
        DataError: not even one filter fits.
    """
    result: list[list[Filters]] = [[]]
    left = limit_bytes
    for layer in layers:
        one = Filters(layer.tensor, layer.cells, 0, 1).size_bytes(pictures)
        if one > limit_bytes:
            raise DataError(
                f"one filter of '{layer.tensor}' takes {one / 1e9:.3f} GB for {pictures} pictures,"
                f" more than the {limit_bytes / 1e9:.3f} GB that --memory allows; give more"
            )
        first = layer.first
        while first < layer.stop:
            stop = min(layer.stop, first + left // one)
            if stop > first:
                result[-1].append(Filters(layer.tensor, layer.cells, first, stop))
                left -= (stop - first) * one
                first = stop
            if first < layer.stop:
                result.append([])
                left = limit_bytes
    return result


@dataclass(frozen=True, slots=True)
class Scales:
    """What `F = max(f / scale - floor, 0)` takes for each filter of one load's part.

    Attributes:
        peak: (filters,) the highest value, what the last level stands for.
        scale: (filters,) standard deviation over all cells of all pictures of max(f, 0); 0 for a dead filter.
        floor: (filters,) the 90 % quantile of max(f, 0) / scale for filters that fire in most cells, 0 for others: what
            fires everywhere says little about where, what fires seldom loses its weaker patterns to a floor.
    """

    peak: Float32Array
    scale: Float32Array
    floor: Float32Array


class FeatureCache:
    """One load of feature maps.

    Attributes:
        parts: which filters it holds.
        scales: theirs.
    """

    def __init__(self, parts: Sequence[Filters], pictures: int, path: Path) -> None:
        self.parts = list(parts)
        self.pictures = pictures
        self.path = path
        self.scales: dict[str, Scales] = {}
        self._maps: dict[str, npt.NDArray[np.uint8]] = {}

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return sum(part.size_bytes(self.pictures) for part in self.parts)

    def fill(self, source: MapSource) -> int:
        """Run the pictures through the network, twice: for the highest values, then for the maps.

        Returns:
            How often they went through: not at all where the file is complete already.

        Raises:
            DataError: a map holds NaN or infinity, or has another shape than was expected.
        """
        tensors = [part.tensor for part in self.parts]
        about = self.path.with_suffix(".json")
        layout = [asdict(part) | {"cells": list(part.cells), "pictures": self.pictures} for part in self.parts]
        if about.is_file() and self.path.is_file() and json.loads(about.read_text())["layout"] == layout:
            peaks = json.loads(about.read_text())["peaks"]
            passes = 0
            self._map("r+")
        else:
            passes = 2
            about.unlink(missing_ok=True)
            peaks = [peak.tolist() for peak in self._peaks(source.batches(tensors))]
            self._map("w+")
            self._write(source.batches(tensors), peaks)
            write_atomically(about, json.dumps({"layout": layout, "peaks": peaks}).encode())
        for part, peak in zip(self.parts, peaks, strict=True):
            self.scales[part.tensor] = _scales(self._maps[part.tensor], np.array(peak, np.float32))
        return passes

    def factors(self, tensor: str, number: int) -> tuple[float, float]:
        """Return a filter's scale and floor; scale 0 for a dead filter, the same everywhere."""
        scales, row = self.scales[tensor], number - self._part(tensor).first
        return float(scales.scale[row]), float(scales.floor[row])

    def filter(self, tensor: str, number: int, pictures: npt.NDArray[np.int64] | None = None) -> Float32Array:
        """Return F of one filter, (pictures, height, width), of some pictures or all."""
        scales, row = self.scales[tensor], number - self._part(tensor).first
        levels = self._maps[tensor][row] if pictures is None else self._maps[tensor][row, pictures]
        unit = scales.peak[row] / (LEVELS * scales.scale[row])
        return np.asarray(np.maximum(levels * np.float32(unit) - scales.floor[row], np.float32(0)), np.float32)

    def close(self) -> None:
        """Let go of the file and remove it."""
        self._maps.clear()
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".json").unlink(missing_ok=True)

    def _part(self, tensor: str) -> Filters:
        return next(part for part in self.parts if part.tensor == tensor)

    def _map(self, mode: str) -> None:
        whole: Any = np.memmap(self.path, np.uint8, mode, shape=(max(1, self.size_bytes),))  # type: ignore[call-overload]
        start = 0
        for part in self.parts:
            stop = start + part.size_bytes(self.pictures)
            shape = (part.stop - part.first, self.pictures, *part.cells)
            self._maps[part.tensor] = whole[start:stop].reshape(shape)
            start = stop

    def _peaks(self, batches: Iterable[Maps]) -> list[Float32Array]:
        peaks = [np.zeros(part.stop - part.first, np.float32) for part in self.parts]
        seen = 0
        for maps in batches:
            for peak, part in zip(peaks, self.parts, strict=True):
                np.maximum(peak, self._slice(maps, part, seen).max((0, 2, 3)), out=peak)
            seen += len(maps[self.parts[0].tensor])
        if seen != self.pictures:
            raise DataError(f"the network gave maps of {seen} pictures, expected {self.pictures}")
        return peaks

    def _write(self, batches: Iterable[Maps], peaks: Sequence[Sequence[float]]) -> None:
        seen = 0
        for maps in batches:
            for part, peak in zip(self.parts, peaks, strict=True):
                values = self._slice(maps, part, seen)
                unit = LEVELS / np.where(np.array(peak) > 0, peak, 1).astype(np.float32)
                levels = np.rint(np.maximum(values, 0) * unit[:, None, None]).astype(np.uint8)
                self._maps[part.tensor][:, seen : seen + len(levels)] = levels.transpose(1, 0, 2, 3)
            seen += len(maps[self.parts[0].tensor])

    def _slice(self, maps: Maps, part: Filters, seen: int) -> npt.NDArray[np.floating[Any]]:
        values = maps[part.tensor][:, part.first : part.stop]
        if values.shape[1:] != (part.stop - part.first, *part.cells):
            raise DataError(
                f"'{part.tensor}' has shape {list(maps[part.tensor].shape)}, expected {part.cells[0]} x {part.cells[1]}"
                f" cells and at least {part.stop} filters"
            )
        if not np.isfinite(values).all():
            picture = seen + int(np.argmin(np.isfinite(values).all((1, 2, 3))))
            raise DataError(
                f"'{part.tensor}' holds NaN or infinity for picture {picture}; the network is damaged or its input is"
                " normalised wrongly"
            )
        return values


def _scales(maps: npt.NDArray[np.uint8], peak: Float32Array) -> Scales:
    """Return the scales of filters from their levels (filters, pictures, height, width)."""
    count = np.stack([np.bincount(levels.ravel(), minlength=LEVELS + 1) for levels in maps]).astype(np.float64)
    level = np.arange(LEVELS + 1)
    total = count.sum(1)
    mean = count @ level / total
    deviation = np.sqrt(np.maximum(count @ level.astype(np.float64) ** 2 / total - mean**2, 0))
    reached = (count.cumsum(1) >= FLOOR_QUANTILE * total[:, None]).argmax(1)
    alive, dense = deviation > 0, count[:, 1:].sum(1) > DENSE_SHARE * total
    safe = np.where(alive, deviation, 1)
    return Scales(
        peak=peak,
        scale=np.where(alive, deviation * peak / LEVELS, 0).astype(np.float32),
        floor=np.where(alive & dense, reached / safe, 0).astype(np.float32),
    )
