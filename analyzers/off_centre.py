"""Shift crops away from the middle, so that looking at the middle no longer finds the part.

Crops are tight object boxes, parts sit near the same place in all of them, and a peak that never moves scores
well. Moving each crop by a known random step breaks that; the marks move along.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analyzers.pictures import PartMarks
from analyzers.pixels import UInt8Array

REACH = 0.25  # share of the side that a crop moves at most

Int64Array = npt.NDArray[np.int64]


def off_centre(
    pixels: UInt8Array, marks: PartMarks, *, seed: int = 0, reach: float = REACH
) -> tuple[UInt8Array, PartMarks]:
    """Return the crops (pictures, height, width, 3), each moved at random, and where their parts are now."""
    step = random_steps(len(pixels), pixels.shape[1:3], seed=seed, reach=reach)
    return move_pixels(pixels, step), move_marks(marks, step, pixels.shape[1:3])


def random_steps(count: int, size: tuple[int, ...], *, seed: int = 0, reach: float = REACH) -> Int64Array:
    """Return (count, 2) whole pixels (right, down), each evenly from -reach to +reach of the width and height.

    The same seed gives picture i the same step whatever the count, so crops may be moved batch by batch.

    Args:
        count: how many pictures.
        size: (height, width) in pixels.
        seed: of the random numbers.
        reach: share of the side, 0..1.
    """
    limit = np.floor(np.array([size[1], size[0]]) * reach)
    share = np.random.default_rng(seed).random((count, 2))
    return np.asarray(np.floor(share * (2 * limit + 1)) - limit, np.int64)


def move_pixels(pixels: UInt8Array, step: Int64Array) -> UInt8Array:
    """Move each picture by its step; what comes into view has the picture's mean colour.

    Not its mirror image, which would show parts twice, and not its border, which would smear them.
    """
    count, height, width, _ = pixels.shape
    moved = np.empty_like(pixels)
    for row in range(count):
        moved[row] = np.rint(pixels[row].mean((0, 1))).astype(np.uint8)
        right, down = (int(pixel) for pixel in step[row])
        into = _window(down, height), _window(right, width)
        out_of = _window(-down, height), _window(-right, width)
        moved[row][into] = pixels[row][out_of]
    return moved


def move_marks(marks: PartMarks, step: Int64Array, size: tuple[int, ...]) -> PartMarks:
    """Move marks (shares of the sides) by steps in pixels of pictures of `size` (height, width).

    A part whose centre leaves the picture becomes NaN; a box that sticks out is clipped.
    """
    share = step / np.array([size[1], size[0]])
    xy = marks.xy + share[:, None]
    box = np.clip(marks.box + np.tile(share, 2)[:, None], 0, 1)
    gone = ~((xy >= 0) & (xy <= 1)).all(-1, keepdims=True)
    return PartMarks(
        marks.names, np.where(gone, np.nan, xy).astype(np.float32), np.where(gone, np.nan, box).astype(np.float32)
    )


def _window(step: int, length: int) -> slice:
    """Return the part of an axis that is filled when its content moves by `step`."""
    return slice(max(step, 0), min(length + step, length))
