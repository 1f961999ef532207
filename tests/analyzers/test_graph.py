"""Where cells lie, on graphs where a guess would be wrong; numbers by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from analyzers.graph import filter_by_filter, grid_of
from analyzers.manifest import Grid

HEIGHT, WIDTH = 24, 40
CONV = "x = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (image, k3)"  # stride 2, offset .5, field 3
KERNELS = {"k1": (1, 1), "k2": (2, 2), "k3": (3, 3), "k5": (5, 5), "k1x7": (1, 7), "k7x1": (7, 1), "k3x5": (3, 5)}
NUMBERS = {"zeros": [0, 0], "ones": [1, 1], "twos": [2, 2], "ends": [99, 99], "space": [2, 3], "minus": [-1, -1]}
PADS = {"sides": [0, 0, 1, 2, 0, 0, 3, 4], "channels": [0, 2, 0, 0, 0, 2, 0, 0]}


def model(body: str) -> onnx.ModelProto:
    """Return a graph from a 24 x 40 picture to `map`; kernels have one value."""
    graph = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[batch, 3, {HEIGHT}, {WIDTH}] image) => (float[batch, c, h, w] map) {{ {body} }}
    """)
    used = {name for node in graph.graph.node for name in node.input}
    arrays = {name: np.ones((3, 3, *size), np.float32) for name, size in KERNELS.items()}
    arrays |= {name: np.array(value) for name, value in (NUMBERS | PADS).items()}
    arrays |= {"half": np.float32(0.5), "whole": np.array([-1]), "wide": np.ones((3, 1, 1), np.float32)}
    kept = [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items() if name in used]
    graph.graph.initializer.extend(kept)
    return graph


def grid(body: str, cells: tuple[int, int] = (12, 20)) -> Grid | None:
    return grid_of(model(body), "map", cells)


@pytest.mark.parametrize(
    ("body", "stride", "offset", "field"),
    [
        (CONV.replace("x =", "map ="), (2, 2), (0.5, 0.5), (3, 3)),
        ("map = Conv <strides: ints = [2, 1], pads: ints = [0, 2, 5, 9]> (image, k3x5)", (2, 1), (1.5, 0.5), (3, 5)),
        ("map = Conv <dilations: ints = [3, 1], pads: ints = [0, 0, 0, 0]> (image, k3)", (1, 1), (3.5, 1.5), (7, 3)),
        ("map = Conv <strides: ints = [2, 2]> (image, k2)", (2, 2), (1, 1), (2, 2)),
        (
            'map = Conv <auto_pad: string = "SAME_UPPER", strides: ints = [5, 3]> (image, k5)',
            (5, 3),
            (2.5, 0.5),
            (5, 5),
        ),
        ('map = Conv <auto_pad: string = "SAME_LOWER"> (image, k2)', (1, 1), (0, 0), (2, 2)),
        ('map = Conv <auto_pad: string = "SAME_UPPER"> (image, k2)', (1, 1), (1, 1), (2, 2)),
        ("map = MaxPool <kernel_shape: ints = [3, 3], dilations: ints = [2, 2]> (image)", (1, 1), (2.5, 2.5), (5, 5)),
        (
            f"{CONV} map = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2], ceil_mode: int = 1> (x)",
            (4, 4),
            (1.5, 1.5),
            (5, 5),
        ),
        (f"{CONV} y = Sub (x, half) z = Mul (y, wide) map = Relu (z)", (2, 2), (0.5, 0.5), (3, 3)),
    ],
)
def test_windows_and_pointwise_functions_place_cells(
    body: str, stride: tuple[float, float], offset: tuple[float, float], field: tuple[float, float]
) -> None:
    found = grid(body)
    assert (found.stride, found.offset, found.receptive_field) == (stride, offset, field)


def test_padding_of_its_own_and_cropping_move_the_cells() -> None:
    padded = grid("x = Pad (image, sides) map = Conv (x, k3)")
    assert (padded.offset, padded.receptive_field) == ((0.5, -0.5), (3, 3))
    cropped = grid(f"{CONV} map = Slice (x, ones, ends, space, twos)")
    assert (cropped.stride, cropped.offset, cropped.receptive_field) == ((4, 4), (2.5, 2.5), (3, 3))


def test_a_shortcut_that_subsamples_and_pads_channels_changes_nothing() -> None:
    found = grid(
        f"{CONV} s = Slice (image, zeros, ends, space, twos) p = Pad (s, channels) map = Concat <axis: int = 1> (x, p)"
    )
    assert (found.stride, found.offset, found.receptive_field) == ((2, 2), (0.5, 0.5), (3, 3))


def test_branches_of_different_shape_are_as_wide_as_both_together() -> None:
    body = (
        "tall = Conv <pads: ints = [3, 0, 3, 0]> (image, k7x1) flat = Conv <pads: ints = [0, 3, 0, 3]> (image, k1x7)"
        " map = Concat <axis: int = 1> (tall, flat)"
    )
    assert grid(body).receptive_field == (7, 7)


def test_branches_that_look_beside_each_other_reach_to_the_farther_side() -> None:
    body = (
        "one = Conv <pads: ints = [1, 1, 1, 1]> (image, k3) two = Conv <pads: ints = [2, 2, 0, 0]> (image, k3)"
        " map = Add (one, two)"
    )
    assert grid(body).receptive_field == (5, 5)  # one sees -1..1, two -2..0: two pixels to one side


@pytest.mark.parametrize(
    "gate",
    [
        "g = GlobalAveragePool (x) s = Sigmoid (g)",
        "g = ReduceMean (x, space) s = Sigmoid (g)",
        "g = AveragePool <kernel_shape: ints = [12, 20]> (x) s = Sigmoid (g)",
        "g = AveragePool <kernel_shape: ints = [12, 20]> (x) c = Conv (g, k1) s = Sigmoid (c)",
    ],
)
def test_a_gate_over_the_whole_map_keeps_the_cells_and_widens_the_field_to_the_picture(gate: str) -> None:
    found = grid(f"{CONV} {gate} map = Mul (x, s)")
    assert (found.stride, found.offset) == ((2, 2), (0.5, 0.5))
    assert found.receptive_field == (47, 79)  # from its first cell at .5 to the picture's end, both ways
    later = grid(f"{CONV} {gate} y = Mul (s, x) map = Conv <pads: ints = [1, 1, 1, 1]> (y, k3)")
    assert (later.stride, later.receptive_field) == ((2, 2), (47, 79))


@pytest.mark.parametrize(
    "body",
    [
        f"{CONV} map = Transpose <perm: ints = [0, 1, 3, 2]> (x)",
        f"{CONV} t = Transpose <perm: ints = [0, 2, 3, 1]> (x) map = Relu (t)",
        f"{CONV} map = Concat <axis: int = 2> (x, x)",
        f"{CONV} map = Concat <axis: int = -1> (x, x)",
        f"{CONV} map = ConvTranspose (x, k3)",
        f"{CONV} s = Constant <value_floats: floats = [1., 1., 2., 2.]> () map = Resize (x, , s)",
        f"{CONV} map = Slice (x, ends, zeros, space, minus)",
        f"{CONV} map = DepthToSpace <blocksize: int = 1> (x)",
        "map = Conv (half, k3)",
    ],
)
def test_cells_that_cannot_be_followed_have_no_grid(body: str) -> None:
    assert grid(body) is None


def test_a_kernel_computed_from_the_picture_has_no_grid() -> None:
    assert grid("w = Slice (image, zeros, ones, space, ones) map = Conv (image, w)") is None


@pytest.mark.parametrize(
    ("behind", "same"),
    [
        ("pooled = Identity (map)", True),
        ("pooled = Mul (map, mask)", True),
        ("pooled = Mul (mask, map)", True),
        ("m = Mul (map, mask) pooled = Relu (m)", True),
        ("pooled = Add (map, mask)", False),
        ("pooled = Conv (map, k1)", False),
        ("c = Conv (map, k1) pooled = Mul (c, mask)", False),
    ],
)
def test_features_are_filters_only_where_nothing_mixes_them(behind: str, same: bool) -> None:
    body = f"{CONV} map = Relu (x) p = ReduceMax (map, space) mask = Sigmoid (p) {behind}"
    assert filter_by_filter(model(body), "pooled", "map") == same


CHANNELS = "s = Shape <start: int = 1, end: int = 2> (x) h = Div (s, two) a = Slice (x, none, h, one_axis)"


@pytest.mark.parametrize(
    "body",
    [
        # ShuffleNet: half of the channels by computed bounds, and channels dealt out anew in groups.
        f"{CONV} {CHANNELS} map = Relu (a)",
        f"{CONV} g = Reshape (x, groups) t = Transpose <perm: ints = [0, 2, 1, 3, 4]> (g) map = Reshape (t, joined)",
        f"{CONV} a, b = Split <axis: int = 1, num_outputs: int = 3> (x) map = Relu (b)",
        f"{CONV} map = Gather <axis: int = 1> (x, order)",
        f"{CONV} t = Transpose <perm: ints = [0, 2, 3, 1]> (x) r = Relu (t) map = Transpose <perm: ints = [0, 3, 1, 2]> (r)",  # noqa: E501
    ],
)
def test_what_is_done_to_channels_leaves_cells_where_they_are(body: str) -> None:
    graph = model(body.replace("a, b = Split", "a, b, c = Split"))
    extra = {"two": [2], "none": [0], "one_axis": [1], "order": [2, 1, 0]}
    extra |= {"groups": [0, 3, 1, 12, 20], "joined": [0, 3, 12, 20]}
    used = {name for node in graph.graph.node for name in node.input}
    kept = [onnx.numpy_helper.from_array(np.array(a), name) for name, a in extra.items() if name in used]
    graph.graph.initializer.extend(kept)
    found = grid_of(graph, "map", (12, 20))
    assert found is not None
    assert (found.stride, found.offset, found.receptive_field) == ((2, 2), (0.5, 0.5), (3, 3))


@pytest.mark.parametrize(
    "body",
    [
        f"{CONV} map = Transpose <perm: ints = [0, 1, 3, 2]> (x)",
        f"{CONV} map = Gather <axis: int = 2> (x, order)",
        f"{CONV} g = Reshape (x, mixed) map = Relu (g)",
    ],
)
def test_what_moves_cells_has_no_grid(body: str) -> None:
    graph = model(body)
    extra = {"order": [2, 1, 0], "mixed": [0, 3, 20, 12]}
    used = {name for node in graph.graph.node for name in node.input}
    kept = [onnx.numpy_helper.from_array(np.array(a), name) for name, a in extra.items() if name in used]
    graph.graph.initializer.extend(kept)
    assert grid_of(graph, "map", (12, 20)) is None
