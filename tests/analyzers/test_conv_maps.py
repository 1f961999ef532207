"""The conv maps of any ONNX model: found behind activations and residual sums, listed, and refused by name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from analyzers.conv_maps import default_maps, find_conv_maps, named_maps, open_maps, read_network
from analyzers.errors import ModelError
from analyzers.fingerprint import maps_fingerprint
from analyzers.graph import Graph
from analyzers.preprocessing import Preprocessing
from tests.conftest import explain_tiny, tiny_plain

# conv -> ReLU -> (conv -> ReLU -> conv) + itself -> ReLU -> pool -> conv -> gated by its own sigmoid -> mean
RESIDUAL = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[batch, 3, 32, 32] image) => (float[batch, 4, 1, 1] pooled)
{
    stem = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (image, w0)
    stem_relu = Relu (stem)
    inner = Conv <pads: ints = [1, 1, 1, 1]> (stem_relu, w1)
    inner_relu = Relu (inner)
    outer = Conv <pads: ints = [1, 1, 1, 1]> (inner_relu, w1)
    sum = Add (outer, stem_relu)
    block = Relu (sum)
    small = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (block)
    last = Conv <pads: ints = [1, 1, 1, 1]> (small, w1)
    gate = Sigmoid (last)
    gated = Mul (last, gate)
    pooled = GlobalAveragePool (gated)
}
"""


def residual() -> bytes:
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(RESIDUAL)
    for name, shape in (("w0", (4, 3, 3, 3)), ("w1", (4, 4, 3, 3))):
        weight = random.normal(0, 0.3, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return model.SerializeToString()


def test_maps_are_found_behind_what_follows_each_convolution_point_by_point() -> None:
    maps = find_conv_maps(*read_network(residual()))
    assert [one.tensor for one in maps] == ["stem_relu", "inner_relu", "block", "last"]
    assert [one.grid.cells for one in maps] == [(16, 16), (16, 16), (16, 16), (8, 8)]
    assert maps[0].grid.stride == (2.0, 2.0)
    assert maps[3].grid.offset == (1.5, 1.5)  # by hand: cell 0 of the pool covers pixel centres 0.5 and 2.5
    assert str(maps[3]) == "last (4 filters of 8 x 8 cells, every 4 pixels)"


def test_the_default_is_the_last_map_of_each_resolution_from_the_top_down() -> None:
    maps = find_conv_maps(*read_network(residual()))
    assert [one.tensor for one in default_maps(maps)] == ["last", "block"]


def test_layers_that_are_unknown_repeated_or_upside_down_are_refused() -> None:
    maps = find_conv_maps(*read_network(residual()))
    assert [one.tensor for one in named_maps(maps, ["last", "inner_relu"])] == ["last", "inner_relu"]
    with pytest.raises(ModelError, match=r"there is no conv map 'lost'; there are stem_relu \(4 filters of 16 x 16"):
        named_maps(maps, ["last", "lost"])
    with pytest.raises(ModelError, match="from the top one down: last,block, not block,last"):
        named_maps(maps, ["block", "last"])
    with pytest.raises(ModelError, match="named twice"):
        named_maps(maps, ["last", "last"])


def test_only_what_the_maps_need_is_computed() -> None:
    model, _ = read_network(residual())
    session = open_maps(model, ["block"])
    answer = session.run({"image": np.zeros((3, 3, 32, 32), np.float32)})
    assert {name: value.shape for name, value in answer.items()} == {"block": (3, 4, 16, 16)}
    assert Graph(model).producer.keys() >= {"pooled"}  # and the model itself is as it was


def test_a_model_without_convolutions_has_no_maps() -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> n (float[b, 3, 8, 8] x) => (float[b, 3, 8, 8] y) { y = Relu (x) }'
    with pytest.raises(ModelError, match="the model has no convolution"):
        find_conv_maps(*read_network(onnx.parser.parse_model(text).SerializeToString()))


def test_plain_and_explained_files_have_one_fingerprint_and_other_weights_another() -> None:
    plain, explained, other = tiny_plain(), explain_tiny()[2].SerializeToString(), tiny_plain(1)
    prints = [maps_fingerprint(read_network(data)[0], ["relu"]) for data in (plain, explained, other)]
    assert prints[0] == prints[1] != prints[2]
    normalised = read_network(plain, Preprocessing(mean=(0.5, 0.5, 0.5)))[0]
    assert maps_fingerprint(normalised, ["relu"]) != prints[0]


def test_flags_that_contradict_the_file_are_refused() -> None:
    explained = explain_tiny()[2].SerializeToString()
    with pytest.raises(ModelError, match="normalises its pictures itself"):
        read_network(explained, Preprocessing(mean=(0.5, 0.5, 0.5)))
