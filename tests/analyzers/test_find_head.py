"""The final layer is found in whatever form an exporter wrote it, or refused with its place; numbers by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from analyzers.attach import Selection, attach
from analyzers.errors import ModelError
from analyzers.find_head import Classifier, find_classifier
from analyzers.manifest import ModelInput
from analyzers.plain import Layer, Plain, manifest_of, read_plain
from analyzers.prove import prove
from analyzers.runtime import open_session

FEATURES, CLASSES = 4, 2
WEIGHT = np.arange(8, dtype=np.float32).reshape(CLASSES, FEATURES)
NAMES = ("left", "right")
# A map of 3 x 5 cells of four channels, and its mean.
MAP = "c = Conv <strides: ints = [2, 2]> (image, kernel) r = Relu (c)"
MEAN = f"{MAP} p = GlobalAveragePool (r) x = Flatten (p)"
NHWC = f"{MAP} t = Transpose <perm: ints = [0, 2, 3, 1]> (r)"
GEMM = "y = Gemm <transB: int = 1> (x, w, b)"


def classifier(body: str, outputs: str = "float[batch, 2] y") -> onnx.ModelProto:
    """Return a graph from a 7 x 11 picture to `y`."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[batch, 3, 7, 11] image) => ({outputs}) {{ {body} }}
    """)
    random = np.random.default_rng(0)
    floats = {
        "kernel": random.normal(0, 1, (FEATURES, 3, 3, 3)),
        "wide": random.normal(0, 1, (FEATURES, FEATURES, 3, 5)),
    }
    floats |= {"w": WEIGHT, "wt": WEIGHT.T, "b": np.array([5, 6]), "row": np.array([[5, 6]]), "one": np.array(7)}
    floats |= {
        "w1x1": WEIGHT[:, :, None, None],
        "two": np.array(2),
        "each": np.array([1, 3]),
        "column": np.ones((2, 1)),
    }
    floats |= {
        "scale": np.array([1, 2, 3, 4]),
        "shift": np.array([1, 0, -1, 2]),
        "zero4": np.zeros(4),
        "one4": np.ones(4),
    }
    floats |= {"cells": random.normal(0, 1, (60, 2)), "window": random.normal(0, 1, (2, FEATURES, 3, 5))}
    floats |= {
        "w4": WEIGHT.T[None, None],
        "hidden": random.normal(0, 1, (FEATURES, FEATURES)),
        "fifteenth": np.array(1 / 15),
    }
    integers = {
        "space": [2, 3],
        "inner": [1, 2],
        "flat": [0, -1],
        "lines": [0, 4, -1],
        "last": [-1],
        "rows": [0, 15, 4],
    }
    integers |= {"first": 0, "tokens": [0, 4, 15], "map_shape": [0, 4, 3, 5], "one_axis": [1]}
    used = {name for node in model.graph.node for name in node.input}
    arrays = {name: np.asarray(a, np.float32) for name, a in floats.items()}
    arrays |= {name: np.array(a, np.int64) for name, a in integers.items()}
    kept = [onnx.numpy_helper.from_array(a.copy(), name) for name, a in arrays.items() if name in used]
    model.graph.initializer.extend(kept)
    return model


def find(body: str, scores: str | None = None) -> Classifier:
    model = classifier(body)
    return find_classifier(model, ModelInput(tensor="image", height=7, width=11), scores)


def proved(body: str) -> Plain:
    """Read, attach and prove, as the command does."""
    plain = read_plain(classifier(body).SerializeToString(), names=NAMES)
    explained = attach(plain, Selection(np.array([[0, 2], [1, 3]]), None, "given"))
    pictures = np.random.default_rng(5).random((5, 3, 7, 11), np.float32)
    proof = prove(plain, explained, Layer(), pictures)
    assert (proof.location_gap is None) == (not manifest_of(explained).class_features.exact)
    return plain


@pytest.mark.parametrize(
    ("end", "bias"),
    [
        (GEMM, [5, 6]),
        ("y = Gemm (x, wt, row)", [5, 6]),
        ("y = Gemm (x, wt, one)", [7, 7]),
        ("y = Gemm (x, wt)", [0, 0]),
        ("m = MatMul (x, wt) y = Add (m, b)", [5, 6]),
        ("m = MatMul (x, wt) y = Add (row, m)", [5, 6]),
        ("m = MatMul (x, wt) y = Add (m, one)", [7, 7]),
        ("y = MatMul (x, wt)", [0, 0]),
        ("k = Identity (wt) y = Gemm (x, k, b)", [5, 6]),
        ("k = Transpose (w) y = Gemm (x, k, b)", [5, 6]),
        ("c5 = Constant <value_floats: floats = [5., 6.]> () y = Gemm (x, wt, c5)", [5, 6]),
        ('m = Einsum <equation: string = "nf,cf->nc"> (x, w) y = Add (m, b)', [5, 6]),
        ("m = MatMul (x, wt) s = Sub (m, b) y = Identity (s)", [-5, -6]),
        ("s = Shape <start: int = 0, end: int = 1> (x) n = Concat <axis: int = 0> (s, last) v = Reshape (x, n)"
         " m = MatMul (v, wt) y = Add (m, b)", [5, 6]),
    ],
)  # fmt: skip
def test_the_final_layer_in_numbers(end: str, bias: list[float]) -> None:
    found = find(f"{MEAN} {end}")
    assert found.head.weight.tolist() == WEIGHT.tolist()
    assert found.head.bias.tolist() == bias
    assert (found.head.weight.dtype, found.head.bias.dtype) == (np.float32, np.float32)
    assert (found.map, found.inexact, found.grid.cells) == ("r", "", (3, 5))
    proved(f"{MEAN} {end}")


@pytest.mark.parametrize(
    ("end", "weight", "bias"),
    [
        ("y = Gemm <alpha: float = 2.0> (x, wt, b)", 2 * WEIGHT, [5, 6]),
        ("y = Gemm <beta: float = 0.5> (x, wt, b)", WEIGHT, [2.5, 3]),
        ("m = Gemm (x, wt, b) y = Mul (m, two)", 2 * WEIGHT, [10, 12]),
        ("m = Gemm (x, wt, b) y = Div (m, two)", WEIGHT / 2, [2.5, 3]),
        ("m = Gemm (x, wt, b) y = Mul (m, each)", WEIGHT * [[1], [3]], [5, 18]),
        ("m = Gemm (x, wt, b) y = Sub (two, m)", -WEIGHT, [-3, -4]),
    ],
)
def test_what_follows_the_final_layer_is_folded_into_it(end: str, weight: np.ndarray, bias: list[float]) -> None:
    found = find(f"{MEAN} {end}")
    np.testing.assert_allclose(found.head.weight, weight, atol=1e-5)
    np.testing.assert_allclose(found.head.bias, bias, atol=1e-6)
    proved(f"{MEAN} {end}")


def test_normalisation_between_mean_and_layer_is_folded_so_that_features_are_means() -> None:
    body = (
        f"{MAP} p = GlobalAveragePool (r) n = BatchNormalization (p, scale, shift, zero4, one4) x = Flatten (n) {GEMM}"
    )
    found = proved(body).found
    assert found.map == "r"
    np.testing.assert_allclose(found.head.weight, WEIGHT * [1, 2, 3, 4], rtol=1e-4)
    np.testing.assert_allclose(found.head.bias, WEIGHT @ [1, 0, -1, 2] + [5, 6], rtol=1e-4)


@pytest.mark.parametrize(
    "body",
    [
        f"{MAP} x = ReduceMean <keepdims: int = 0> (r, space) {GEMM}",
        f"{NHWC} x = ReduceMean <keepdims: int = 0> (t, inner) {GEMM}",
        f"{NHWC} p = ReduceMean (t, inner) x = Squeeze (p, inner) {GEMM}",
        f"{NHWC} t2 = Transpose <perm: ints = [0, 3, 1, 2]> (t) p = GlobalAveragePool (t2) x = Flatten (p) {GEMM}",
        f"{MAP} s = Reshape (r, lines) x = ReduceMean <keepdims: int = 0> (s, last) {GEMM}",
        f"{MAP} q = ReduceMean <keepdims: int = 0> (r, last) x = ReduceMean <keepdims: int = 0> (q, last) {GEMM}",
        f"{MAP} p = AveragePool <kernel_shape: ints = [3, 5]> (r) x = Reshape (p, flat) {GEMM}",
        f"{MAP} s = ReduceSum <keepdims: int = 0> (r, space) x = Mul (s, fifteenth) {GEMM}",
        f"{MAP} p = GlobalAveragePool (r) z = Conv (p, w1x1, b) y = Flatten (z)",
        f"{MAP} z = Conv (r, w1x1, b) p = GlobalAveragePool (z) y = Flatten (p)",
        f"{NHWC} m = MatMul (t, wt) z = Add (m, b) y = ReduceMean <keepdims: int = 0> (z, inner)",
    ],
)
def test_every_form_of_a_mean_over_a_map_has_places(body: str) -> None:
    plain = proved(body)
    assert plain.found.grid.cells == (3, 5)
    np.testing.assert_allclose(plain.found.head.weight, WEIGHT, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(plain.found.head.bias, [5, 6], rtol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        f"{MAP} x = Flatten (r) y = Gemm (x, cells, b)",
        f"{NHWC} x = Flatten (t) y = Gemm (x, cells, b)",
        f"{MAP} z = Conv (r, window, b) y = Flatten (z)",
    ],
)
def test_a_weight_for_each_cell_is_exact_too(body: str) -> None:
    found = proved(body).found
    assert found.flat
    assert found.map == "r"
    assert found.head.weight.shape == (2, 60)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"{MEAN} h = Gemm (x, hidden) g = Relu (h) y = Gemm (g, wt, b)", "reads 'g', made by Relu 'g'"),
        (f"{MAP} p = GlobalMaxPool (r) x = Flatten (p) {GEMM}", "made by GlobalMaxPool 'p'"),
        (f"{MEAN} n = LayerNormalization (x, one4) y = Gemm (n, wt, b)", "made by LayerNormalization 'n'"),
        (f"{MAP} k = Reshape (r, lines) t = Transpose <perm: ints = [0, 2, 1]> (k) n = LayerNormalization (t, one4)"
         " s = Gather <axis: int = 1> (n, first) y = Gemm (s, wt, b)", "made by LayerNormalization 'n'"),
        (f"{MAP} d = Concat <axis: int = 2> (r, r) p = GlobalAveragePool (d) x = Flatten (p) {GEMM}",
         "means of 'd', made by Concat 'd', whose cells have no place in the picture"),
    ],
)  # fmt: skip
def test_where_contributions_have_no_place_the_file_says_why(body: str, words: str) -> None:
    found = proved(body).found
    assert found.map is None
    assert words in found.inexact


def test_a_layer_over_all_tokens_of_which_one_is_read_has_that_one_s_features() -> None:
    tokens = f"{MAP} k = Reshape (r, lines) t = Transpose <perm: ints = [0, 2, 1]> (k) n = LayerNormalization (t, one4)"
    found = proved(f"{tokens} m = MatMul (n, wt) s = Gather <axis: int = 1> (m, first) y = Add (s, b)").found
    assert found.head.weight.tolist() == WEIGHT.tolist()


@pytest.mark.parametrize(
    ("end", "activation"),
    [
        ("z = Gemm (x, wt, b) y = Softmax (z)", "softmax"),
        ("z = Gemm (x, wt, b) y = LogSoftmax <axis: int = 1> (z)", "softmax"),
        ("z = Gemm (x, wt, b) y = Sigmoid (z)", "sigmoid"),
        ("z = Gemm (x, wt, b) s = Softmax (z) v = Reshape (s, flat) y = Identity (v)", "softmax"),
        ("v = Unsqueeze (x, space) z = Conv (v, w1x1, b) s = Softmax <axis: int = 1> (z) y = Flatten (s)", "softmax"),
        (GEMM, None),
    ],
)
def test_scores_are_taken_before_the_activation(end: str, activation: str | None) -> None:
    plain = proved(f"{MEAN} {end}")
    assert plain.found.activation == activation
    assert plain.manifest.scores.activation == (activation or "softmax")
    assert plain.manifest.scores.tensor != "y" or activation is None
    np.testing.assert_allclose(plain.found.head.weight, WEIGHT, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"{MEAN} m = MatMul (x, wt) y = Add (m, m)", "what is made by Add"),
        (f"{MEAN} m = MatMul (x, wt) n = Relu (m) y = Identity (n)", "what is made by Relu"),
        (f"{MEAN} m = Gemm (x, wt, b) y = Div (two, m)", "what is made by Div"),
        (f"{MEAN} m = Gemm (x, wt, b) s = Sigmoid (m) y = Softmax (s)", "a second activation or one across pictures"),
        (f"{MEAN} m = Gemm (x, wt, b) y = Softmax <axis: int = 0> (m)", "a second activation or one across pictures"),
        (f"{MAP} z = Conv (r, w1x1, b) g = Relu (z) p = GlobalAveragePool (g) y = Flatten (p)", "a mean of what"),
        ("x = Flatten (image) p = ReduceMean <keepdims: int = 1> (x, last) y = Mul (p, each)", "the picture itself"),
        (f"{MAP} m = GlobalAveragePool (r) x = Squeeze (m) y = Gemm <transB: int = 1, transA: int = 1> (x, w)",
         "failed to run"),
    ],
)  # fmt: skip
def test_an_end_that_would_be_explained_wrongly_is_refused(body: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        find(body)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_several_outputs_one_has_to_be_named() -> None:
    body = f"{MEAN} {GEMM} other = Relu (x)"
    model = classifier(body, "float[batch, 2] y, float[batch, 4] other").SerializeToString()
    with pytest.raises(ModelError, match=r"2 outputs \(y, other\); say with --scores which holds the class scores"):
        read_plain(model, names=NAMES)
    with pytest.raises(ModelError, match=r"no output 'z'; there are y, other"):
        read_plain(model, names=NAMES, scores="z")
    assert read_plain(model, names=NAMES, scores="y").found.head.weight.tolist() == WEIGHT.tolist()


def test_a_graph_is_left_as_it_was_but_for_what_our_outputs_need() -> None:
    model = classifier(f"{NHWC} m = MatMul (t, wt) z = Add (m, b) y = ReduceMean <keepdims: int = 0> (z, inner)")
    before = [node.SerializeToString() for node in model.graph.node]
    find_classifier(model, ModelInput(tensor="image", height=7, width=11))
    assert [node.SerializeToString() for node in model.graph.node][: len(before)] == before
    assert all(node.output[0].startswith("pellucid.") for node in model.graph.node[len(before) :])
    open_session(model.SerializeToString())


@pytest.mark.parametrize("scale", [1e-8, 1e6])
def test_tiny_and_huge_features_are_told_apart_as_well(scale: float) -> None:
    """Beside a bias of 5, features of 1e-8 must not let a transposed matrix or another layout pass."""
    body = f"{NHWC} p = ReduceMean <keepdims: int = 0> (t, inner) y = Gemm <transB: int = 1> (p, square, b4)"
    model = classifier(body, "float[batch, 4] y")
    random = np.random.default_rng(2)
    square = random.normal(0, 1, (4, 4)).astype(np.float32)
    for tensor in model.graph.initializer:
        if tensor.name == "kernel":
            kernel = onnx.numpy_helper.to_array(tensor) * np.float32(scale)
            tensor.CopyFrom(onnx.numpy_helper.from_array(kernel, "kernel"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(square, "square"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(4, 5, np.float32), "b4"))
    found = find_classifier(model, ModelInput(tensor="image", height=7, width=11))
    assert np.array_equal(found.head.weight, square)
    assert (found.map, found.grid.cells) == ("r", (3, 5))


def test_a_square_layer_of_tiny_weights_is_not_taken_for_its_transpose() -> None:
    model = classifier(f"{MEAN} y = Gemm (x, square, b4)", "float[batch, 4] y")
    square = (np.random.default_rng(2).normal(0, 1, (4, 4)) * 1e-5).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(square, "square"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(4, 1, np.float32), "b4"))
    found = find_classifier(model, ModelInput(tensor="image", height=7, width=11))
    assert np.array_equal(found.head.weight, square.T)
