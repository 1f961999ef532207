"""From cells to pixels: literal numbers, and a bright dot that the reported peak has to follow."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from analyzers.explanation import Box
from analyzers.geometry import Frame, locate
from analyzers.graph import grid_of
from analyzers.manifest import Grid
from analyzers.runtime import open_session
from tests.conftest import tiny_plain

SIDE = 32


def network(body: str, kernels: dict[str, int]) -> onnx.ModelProto:
    """Return a graph that ends in `map`; the kernels are uniform, so that a dot's response is highest at its centre."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[batch, 3, {SIDE}, {SIDE}] image) => (float[batch, c, h, w] map) {{ {body} }}
    """)
    channels = 3
    for name, size in kernels.items():
        # A bump: the middle weighs most, so the peak is unique.
        line = size - abs(np.arange(size) - (size - 1) / 2)
        kernel = np.broadcast_to(np.outer(line, line), (1, channels, size, size)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(kernel), name))
        channels = 1
    return model


STEM = "map = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (image, a)"
NETWORKS = {
    "3x3, stride 2, pad 1": (STEM, {"a": 3}, (2, 0.5, 3)),
    "7x7, stride 2, pad 3, then max pooling": (
        "x = Conv <strides: ints = [2, 2], pads: ints = [3, 3, 3, 3]> (image, a)"
        " map = MaxPool <kernel_shape: ints = [3, 3], strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (x)",
        {"a": 7},
        (4, 0.5, 11),
    ),
    "two strided convolutions and a ReLU": (
        "x = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (image, a) y = Relu (x)"
        " map = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (y, b)",
        {"a": 3, "b": 3},
        (4, 0.5, 7),
    ),
    "no padding": ("map = Conv (image, a)", {"a": 5}, (1, 2.5, 5)),
    "dilation": ("map = Conv <dilations: ints = [2, 2], pads: ints = [2, 2, 2, 2]> (image, a)", {"a": 3}, (1, 0.5, 5)),
    "2x2 average pooling": (
        "x = Conv <pads: ints = [1, 1, 1, 1]> (image, a)"
        " map = AveragePool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (x)",
        {"a": 3},
        (2, 1.0, 4),
    ),
    "SAME_UPPER": (
        'map = Conv <auto_pad: string = "SAME_UPPER", strides: ints = [2, 2]> (image, a)',
        {"a": 3},
        (2, 1.5, 3),
    ),
    "SAME_LOWER": (
        'map = Conv <auto_pad: string = "SAME_LOWER", strides: ints = [2, 2]> (image, a)',
        {"a": 3},
        (2, 0.5, 3),
    ),
    "VALID": ('map = Conv <auto_pad: string = "VALID", strides: ints = [2, 2]> (image, a)', {"a": 3}, (2, 1.5, 3)),
    "a residual branch": (
        "x = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (image, a)"
        " y = Conv <pads: ints = [1, 1, 1, 1]> (x, b) map = Add (y, x)",
        {"a": 3, "b": 3},
        (2, 0.5, 7),
    ),
}


def cells(model: onnx.ModelProto) -> tuple[int, int]:
    shape = (
        open_session(model.SerializeToString()).run({"image": np.zeros((1, 3, SIDE, SIDE), np.float32)})["map"].shape
    )
    return shape[2], shape[3]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_grid_of_a_map_is_read_from_the_graph(name: str) -> None:
    body, kernels, (stride, offset, field) = NETWORKS[name]
    model = network(body, kernels)
    grid = grid_of(model, "map", cells(model))
    assert grid.stride == (stride, stride)
    assert grid.offset == (offset, offset)
    assert grid.receptive_field == (field, field)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_peak_follows_a_bright_dot(name: str) -> None:
    body, kernels, _ = NETWORKS[name]
    model = network(body, kernels)
    session, grid = open_session(model.SerializeToString()), grid_of(model, "map", cells(model))
    frame = Frame(1.0, 1.0, SIDE, SIDE)
    # Overlapping maxima tie, and the first cell wins; otherwise the nearest cell has to.
    limit = grid.stride[0] if "MaxPool" in body else grid.stride[0] / 2 + 0.5
    last = grid.offset[0] + (grid.cells[0] - 1) * grid.stride[0]
    for y in range(3, SIDE - 3):
        x = (7 * y) % (SIDE - 8) + 4
        image = np.zeros((1, 3, SIDE, SIDE), np.float32)
        image[0, :, y, x] = 1
        place = locate(grid, int(session.run({"image": image})["map"].reshape(-1).argmax()), frame)
        for at, dot in ((place.y, y + 0.5), (place.x, x + 0.5)):
            if dot <= last:
                assert abs(at - dot) <= limit, (name, y, x, place)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_outside_the_receptive_field_changes_a_cell(name: str) -> None:
    body, kernels, _ = NETWORKS[name]
    model = network(body, kernels)
    session, grid = open_session(model.SerializeToString()), grid_of(model, "map", cells(model))
    random = np.random.default_rng(0)
    image = random.random((1, 3, SIDE, SIDE), np.float32)
    index = grid.cells[1] * (grid.cells[0] // 2) + grid.cells[1] // 2
    box = locate(grid, index, Frame(1.0, 1.0, SIDE, SIDE)).receptive_field
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = (rows > box.top) & (rows < box.bottom) & (columns > box.left) & (columns < box.right)
    noise = random.random((1, 3, SIDE, SIDE), np.float32)
    outside_changed = np.where(inside, image, noise).astype(np.float32)
    values = [session.run({"image": i})["map"].reshape(-1)[index] for i in (image, outside_changed)]
    assert values[0] == values[1]
    corner = image.copy()
    first = np.argwhere(inside)[0]
    corner[0, :, first[0], first[1]] += 1
    assert session.run({"image": corner})["map"].reshape(-1)[index] != values[0]


def test_a_tensor_that_is_no_map_of_the_picture_has_no_grid() -> None:
    assert grid_of(onnx.load_model_from_string(tiny_plain()), "head_weight", (1, 1)) is None


def test_a_cell_lies_where_it_should_in_the_picture_that_was_sent() -> None:
    grid = Grid(cells=(4, 4), stride=(4, 4), offset=(2, 2), receptive_field=(8, 8))
    place = locate(grid, 5, Frame(scale_x=10, scale_y=2, width=160, height=32))
    assert (place.x, place.y) == (60, 12)
    assert place.cell == Box(40, 8, 80, 16)
    assert place.receptive_field == Box(20, 4, 100, 20)


def test_boxes_end_at_the_picture_s_edge() -> None:
    grid = Grid(cells=(4, 4), stride=(4, 4), offset=(2, 2), receptive_field=(100, 100))
    place = locate(grid, 0, Frame(1, 1, 16, 16))
    assert place.receptive_field == Box(0, 0, 16, 16)
    assert place.cell == Box(0, 0, 4, 4)
