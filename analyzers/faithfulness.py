"""Does a map say what the model looks at? Remove what it points to, and see what becomes of the answer.

Deletion and insertion (Petsiuk et al., BMVC 2018): cells are removed from the picture, or put into an empty one, in
the order of the map; the mean of the class's probability along the way. ROAD (Rong et al., ICML 2022): removed pixels
are filled from their neighbours, so that the shape of the hole tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

Score = Callable[[Float32Array, int], Float64Array]
"""From pictures (n, 3, height, width) and a class to its probabilities (n,)."""

Fill = Literal["mean", "blur"]
MAX_STEPS = 32
SHARES = (0.2, 0.4, 0.6, 0.8)
_NOISE = 0.01
_SWEEPS = 40


def order_of_pixels(cells: npt.NDArray[Any], inside: Int64Array) -> Int64Array:
    """Return (height, width): the place of each pixel's cell when cells are ordered from the highest value down."""
    flat = np.ravel(cells)
    place = np.empty(flat.size, np.int64)
    place[np.argsort(-flat, kind="stable")] = np.arange(flat.size)
    return np.asarray(place[inside])


def empty(image: Float32Array, fill: Fill) -> Float32Array:
    """Return what stands for nothing: the picture's mean colour, or the picture blurred over an eighth of its side."""
    if fill == "mean":
        return np.broadcast_to(image.mean((1, 2), keepdims=True), image.shape).astype(np.float32)
    sigma = max(image.shape[1:]) / 8
    reach = round(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    blurred = image.astype(np.float64)
    for axis in (1, 2):
        padding = [(0, 0)] * 3
        padding[axis] = (reach, reach)
        padded = np.pad(blurred, padding, mode="edge")
        blurred = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
    return blurred.astype(np.float32)


def deletion_insertion(
    image: Float32Array, order: Int64Array, cells: int, score: Score, number: int, fill: Fill
) -> tuple[float, float]:
    """Return (deletion, insertion): means over the way of the class's probability; low and high are good.

    Args:
        image: (3, height, width).
        order: from `order_of_pixels`.
        cells: how many there are.
        score: the model.
        number: the class.
        fill: what stands for nothing.
    """
    steps = min(cells, MAX_STEPS)
    nothing = empty(image, fill)
    pictures = []
    for step in range(steps + 1):
        gone = order < round(step / steps * cells)
        pictures += [np.where(gone, nothing, image), np.where(gone, image, nothing)]
    probability = score(np.stack(pictures).astype(np.float32), number)
    ways = probability.reshape(steps + 1, 2)
    area = (ways[1:] + ways[:-1]).mean(0) / 2
    return float(area[0]), float(area[1])


def road(
    image: Float32Array, order: Int64Array, cells: int, score: Score, number: int, random: np.random.Generator
) -> float:
    """Return (least relevant first - most relevant first) / 2 at 20, 40, 60 and 80 % removed, averaged; high is good.

    Args:
        image: (3, height, width).
        order: from `order_of_pixels`.
        cells: how many there are.
        score: the model.
        number: the class.
        random: of the noise on filled pixels.
    """
    holes = []
    for share in SHARES:
        count = round(share * cells)
        holes += [order < count, order >= cells - count]
    filled = impute(np.broadcast_to(image, (len(holes), *image.shape)), np.stack(holes))
    noisy = filled + np.stack(holes)[:, None] * random.normal(0, _NOISE, filled.shape)
    probability = score(noisy.astype(np.float32), number).reshape(len(SHARES), 2)
    return float((probability[:, 1] - probability[:, 0]).mean() / 2)


def impute(images: npt.NDArray[Any], holes: npt.NDArray[np.bool_]) -> Float64Array:
    """Fill holes (n, height, width) so that each pixel is the mean of its eight neighbours, straight ones twice.

    Started from the mean of what is known at coarser and coarser scales, then swept over.

    Args:
        images: (n, 3, height, width).
        holes: which pixels are to be filled.
    """
    known = ~holes[:, None]
    filled = _pulled(np.where(known, images, 0.0), known.astype(np.float64))
    filled = np.where(known, images, filled)
    for _ in range(_SWEEPS):
        p = np.pad(filled, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        straight = p[:, :, :-2, 1:-1] + p[:, :, 2:, 1:-1] + p[:, :, 1:-1, :-2] + p[:, :, 1:-1, 2:]
        corners = p[:, :, :-2, :-2] + p[:, :, :-2, 2:] + p[:, :, 2:, :-2] + p[:, :, 2:, 2:]
        filled = np.where(known, images, straight / 6 + corners / 12)
    return np.asarray(filled, np.float64)


def _pulled(values: Float64Array, weight: Float64Array) -> Float64Array:
    """Return the known values, and where there are none the mean of what is known at the next coarser scale."""
    height, width = values.shape[2:]
    if height == 1 and width == 1:
        return values / np.maximum(weight, 1e-12)
    padding = ((0, 0), (0, 0), (0, height % 2), (0, width % 2))
    wide, heavy = np.pad(values, padding), np.pad(weight, padding)
    shape = (len(wide), -1, wide.shape[2] // 2, 2, wide.shape[3] // 2, 2)
    sums, weights = (array.reshape(shape).sum((3, 5)) for array in (wide, heavy))
    scale = np.maximum(weights, 1.0)
    coarse = _pulled(sums / scale, np.minimum(weights, 1.0))
    fine = coarse.repeat(2, axis=2).repeat(2, axis=3)[:, :, :height, :width]
    return np.where(weight > 0, values / np.where(weight > 0, weight, 1), fine)
