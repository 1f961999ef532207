"""What the pixels say: paint over the cells where something is, and as many cells elsewhere, and compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from analyzers.errors import InvalidInputError
from analyzers.manifest import Grid

DRAWS = 16

Float32Array = npt.NDArray[np.float32]


def paint(image: Float32Array, grid: Grid, cells: Sequence[int]) -> Float32Array:
    """Return the picture with its mean colour in these cells.

    Args:
        image: (3, height, width).
        grid: of the map whose cells they are.
        cells: row-major numbers.
    """
    painted = image.copy()
    colour = image.mean(axis=(1, 2), dtype=np.float64)
    for cell in cells:
        top, bottom, left, right = _pixels(grid, cell, image.shape[1:])
        painted[:, top:bottom, left:right] = colour[:, None, None]
    return painted


def draw_elsewhere(grid: Grid, cells: Sequence[int], size: tuple[int, ...], *, draws: int = DRAWS) -> list[list[int]]:
    """Draw as many other cells of about the same area, `draws` times; the same ones for the same cells.

    Args:
        grid: of the map whose cells they are.
        cells: what must not be drawn.
        size: (height, width) of the picture.
        draws: how many times.

    Raises:
        InvalidInputError: there are not as many other cells.
    """
    every = range(grid.cells[0] * grid.cells[1])
    area = {cell: _area(_pixels(grid, cell, size)) for cell in every}
    least = min(area[cell] for cell in cells)
    others = [cell for cell in every if cell not in set(cells) and area[cell] >= least]
    if len(others) < len(cells):
        others = [cell for cell in every if cell not in set(cells)]
    if len(others) < len(cells):
        raise InvalidInputError(
            "occlude", f"needs {len(cells)} other cells to compare with; the map has {len(others)} left"
        )
    random = np.random.default_rng(sorted(cells))
    return [random.choice(others, len(cells), replace=False).tolist() for _ in range(draws)]


def _pixels(grid: Grid, cell: int, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of a cell in whole pixels of the model's input."""
    bounds = []
    for axis, place in enumerate(divmod(cell, grid.cells[1])):
        centre, half = grid.offset[axis] + place * grid.stride[axis], grid.stride[axis] / 2
        bounds += [min(max(round(edge), 0), size[axis]) for edge in (centre - half, centre + half)]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _area(pixels: tuple[int, int, int, int]) -> int:
    return (pixels[1] - pixels[0]) * (pixels[3] - pixels[2])
