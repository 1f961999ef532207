"""The reported receptive field of every cell, against the pixels that really change it, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers.geometry import Frame, locate
from analyzers.graph import grid_of
from analyzers.runtime import open_session
from tests.analyzers.test_graph import CONV, HEIGHT, WIDTH, model

BLOCK = (
    "c = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (x, k3) d = Conv <pads: ints = [1, 1, 1, 1]> (c, k3)"
)
NETWORKS = {
    "3x3, stride 2": CONV.replace("x =", "map ="),
    "3x3, stride 2, then 3x5, stride 2 by 1": (
        f"{CONV} map = Conv <strides: ints = [2, 1], pads: ints = [1, 2, 1, 2]> (x, k3x5)"
    ),
    "stem of a ResNet": (
        "x = Conv <strides: ints = [2, 2], pads: ints = [2, 2, 2, 2]> (image, k5)"
        " map = AveragePool <kernel_shape: ints = [3, 3], strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (x)"
    ),
    "no padding, even kernels": "x = Conv (image, k2) map = Conv <strides: ints = [3, 2]> (x, k2)",
    "dilated": "x = Conv <dilations: ints = [2, 3], pads: ints = [2, 3, 2, 3]> (image, k3) map = Conv (x, k1)",
    "uneven pads": "map = Conv <strides: ints = [2, 2], pads: ints = [0, 1, 1, 0]> (image, k3)",
    "SAME_UPPER twice": (
        'x = Conv <auto_pad: string = "SAME_UPPER", strides: ints = [2, 2]> (image, k3)'
        ' map = Conv <auto_pad: string = "SAME_UPPER", strides: ints = [2, 2]> (x, k5)'
    ),
    "SAME_LOWER twice": (
        'x = Conv <auto_pad: string = "SAME_LOWER", strides: ints = [2, 2]> (image, k2)'
        ' map = Conv <auto_pad: string = "SAME_LOWER", strides: ints = [3, 3]> (x, k5)'
    ),
    "VALID": 'map = Conv <auto_pad: string = "VALID", strides: ints = [4, 4]> (image, k5)',
    "a pad and a crop of their own": "x = Pad (image, sides) y = Slice (x, ones, ends, space, twos) map = Conv (y, k3)",
    "residual": f"{CONV} y = Conv <pads: ints = [1, 1, 1, 1]> (x, k3) r = Relu (y) map = Add (r, x)",
    "residual, projected": f"{CONV} {BLOCK} s = Conv <strides: ints = [2, 2]> (x, k1) map = Add (s, d)",
    "residual, subsampled": f"{CONV} {BLOCK} s = Slice (x, zeros, ends, space, twos) map = Add (s, d)",
    "inception": (
        "tall = Conv <pads: ints = [3, 0, 3, 0]> (image, k7x1) flat = Conv <pads: ints = [1, 2, 1, 2]> (image, k3x5)"
        " map = Concat <axis: int = 1> (tall, flat)"
    ),
}


def dependent(body: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Return which pixels change which cell, (cells, height, width), and the map's (height, width)."""
    session = open_session(model(body).SerializeToString())
    still = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    dots = np.zeros((HEIGHT * WIDTH, 3, HEIGHT * WIDTH), np.float32)
    dots[np.arange(HEIGHT * WIDTH), :, np.arange(HEIGHT * WIDTH)] = 1
    before = session.run({"image": still})["map"]
    after = session.run({"image": dots.reshape(-1, 3, HEIGHT, WIDTH)})["map"]
    changed = (after != before).any(1)
    return changed.reshape(HEIGHT, WIDTH, -1).transpose(2, 0, 1), changed.shape[1:]


@pytest.mark.parametrize("name", NETWORKS)
def test_exactly_the_pixels_of_the_receptive_field_change_a_cell(name: str) -> None:
    changed, cells = dependent(NETWORKS[name])
    grid = grid_of(model(NETWORKS[name]), "map", cells)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    whole = 0
    for index in range(cells[0] * cells[1]):
        place = locate(grid, index, Frame(1, 1, WIDTH, HEIGHT))
        box = place.receptive_field
        inside = (rows > box.top) & (rows < box.bottom) & (columns > box.left) & (columns < box.right)
        assert not (changed[index] & ~inside).any(), (index, box)
        if (box.bottom - box.top, box.right - box.left) == grid.receptive_field:  # not cut off by an edge
            whole += 1
            (top, left), (bottom, right) = np.argwhere(changed[index]).min(0), np.argwhere(changed[index]).max(0) + 1
            assert (box.top, box.left, box.bottom, box.right) == (top, left, bottom, right)
            assert (place.y, place.x) == ((top + bottom) / 2, (left + right) / 2)
    assert whole > 0
