"""Maps by cell: which cell each pixel lies in, and the maps that know nothing of the model, for comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.manifest import Grid

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

CONTROLS = ("centre", "edges", "random")


def cell_of_pixels(grid: Grid, height: int, width: int) -> Int64Array:
    """Return (height, width): the row-major number of the cell that each pixel is nearest to."""
    places = []
    for axis, size in enumerate((height, width)):
        first = grid.offset[axis] - grid.stride[axis] / 2
        place = np.floor((np.arange(size) + 0.5 - first) / grid.stride[axis])
        places.append(np.clip(place, 0, grid.cells[axis] - 1).astype(np.int64))
    return np.asarray(places[0][:, None] * grid.cells[1] + places[1])


def control_maps(images: Float32Array, grid: Grid, *, seed: int = 0) -> dict[str, Float64Array]:
    """Return the maps of `CONTROLS` for pictures, each (pictures, rows, columns): they know nothing of any model.

    "centre" falls with the distance from the picture's centre, "edges" is the mean over the cell's pixels of the
    gradient of their brightness (Sobel), "random" is noise.

    Args:
        images: (pictures, 3, height, width) in 0..1.
        grid: of the map to compare with.
        seed: of the noise.
    """
    count, (rows, columns) = len(images), grid.cells
    height, width = images.shape[2:]
    y = (grid.offset[0] + np.arange(rows) * grid.stride[0]) / height - 0.5
    x = (grid.offset[1] + np.arange(columns) * grid.stride[1]) / width - 0.5
    away = np.hypot(y[:, None], x)
    centre = away.max() - away  # positive, as evidence for a class mostly is
    inside = cell_of_pixels(grid, height, width)
    edges = mean_by_cell(sobel(images.mean(1, dtype=np.float64)), inside, rows * columns)
    return {
        "centre": np.broadcast_to(centre, (count, rows, columns)).copy(),
        "edges": edges.reshape(count, rows, columns),
        "random": np.random.default_rng(seed).random((count, rows, columns)),
    }


def mean_by_cell(values: npt.NDArray[Any], inside: Int64Array, cells: int) -> Float64Array:
    """Return (pictures, cells): the mean over each cell's pixels of (pictures, height, width); 0 for empty cells."""
    number = np.maximum(np.bincount(inside.ravel(), minlength=cells), 1)
    sums = [np.bincount(inside.ravel(), picture.ravel(), minlength=cells) for picture in values]
    return np.stack(sums) / number


def sobel(brightness: Float64Array) -> Float64Array:
    """Return the size of the gradient, (pictures, height, width), borders repeated."""
    padded = np.pad(brightness, ((0, 0), (1, 1), (1, 1)), mode="edge")
    smooth_rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    smooth_columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    across = smooth_rows[:, :, 2:] - smooth_rows[:, :, :-2]
    down = smooth_columns[:, 2:] - smooth_columns[:, :-2]
    return np.asarray(np.hypot(across, down))
