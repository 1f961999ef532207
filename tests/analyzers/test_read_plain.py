"""A classifier that somebody brings is read as what it is, or refused in one sentence; never changed unnoticed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from analyzers.attach import Selection, attach
from analyzers.errors import InvalidInputError, ModelError
from analyzers.manifest import Manifest, Triple
from analyzers.plain import Layer, read_plain
from analyzers.preprocessing import Preprocessing
from analyzers.prove import prove
from analyzers.runtime import open_session
from tests.conftest import NAMES, SIZE, tiny_plain

GIVEN = Selection(np.array([[0, 1], [2, 3], [6, 7]]), None, "given")
POOL = "p = GlobalAveragePool (r) f = Flatten (p)"
GEMM = "y = Gemm <transB: int = 1> (f, head_weight, head_bias)"


def foreign(
    end: str = f"{POOL} {GEMM}", *, opset: int = 20, ir: int = 10, shape: str = "batch, 3, 16, 16", y: str = "batch, 3"
) -> onnx.ModelProto:
    """Return a classifier that ends in `end`, whose last map is `r`, with the tiny network's weights."""
    model = onnx.parser.parse_model(f"""
        <ir_version: {ir}, opset_import: ["" : {opset}]>
        foreign (float[{shape}] x) => (float[{y}] y) {{
            c = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (x, conv_weight, conv_bias) r = Relu (c) {end}
        }}
    """)
    used = {name for node in model.graph.node for name in node.input}
    weights = {w.name: w for w in onnx.load_model_from_string(tiny_plain()).graph.initializer}
    random = np.random.default_rng(0)
    arrays = {name: random.random(8).astype(np.float32) + 0.5 for name in ("scale", "shift", "centre", "spread")}
    arrays |= {"one_row": np.array([1, -1]), "middle": np.array([0, 1, 8]), "lines": np.array([0, 8, -1])}
    arrays |= {"space": np.array([2, 3]), "inner": np.array([1, 2]), "one": np.array([1]), "last": np.array([-1])}
    arrays["turned"] = onnx.numpy_helper.to_array(weights["head_weight"]).T.copy()
    weights |= {name: onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()}
    model.graph.initializer.extend(weight for name, weight in weights.items() if name in used)
    if ir < 4:  # then every initializer is an input as well
        for weight in model.graph.initializer:
            model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, 1, list(weight.dims)))
    return model


def images(count: int) -> np.ndarray:
    return np.random.default_rng(3).random((count, 3, SIZE, SIZE), np.float32)


def explained(model: onnx.ModelProto) -> onnx.ModelProto:
    plain = read_plain(model.SerializeToString(), names=NAMES)
    result = attach(plain, GIVEN)
    prove(plain, result, Layer(), images(6))
    return result


@pytest.mark.parametrize(
    ("opset", "ir", "end"),
    [
        (9, 3, f"{POOL} {GEMM}"),
        (9, 4, f"{POOL} {GEMM.replace('y =', 'z =')} y = Softmax (z)"),
        (12, 7, f"{POOL} {GEMM.replace('y =', 'z =')} y = Softmax <axis: int = 1> (z)"),
        (13, 8, f"f = ReduceMean <axes: ints = [2, 3], keepdims: int = 0> (r) {GEMM}"),
        (9, 4, f"n = BatchNormalization (r, scale, shift, centre, spread) {POOL.replace('(r)', '(n)')} {GEMM}"),
        (9, 4, f"n = Clip <min: float = 0.1, max: float = 0.6> (r) {POOL.replace('(r)', '(n)')} {GEMM}"),
        (9, 4, f"p = GlobalAveragePool (r) d = Squeeze <axes: ints = [2, 3]> (p) f = Dropout (d) {GEMM}"),
        (9, 4, f"n = Pad <pads: ints = [0, 0, 1, 1, 0, 0, 2, 2]> (r) {POOL.replace('(r)', '(n)')} {GEMM}"),
        (
            9,
            4,
            f"n = Slice <axes: ints = [2], starts: ints = [3], ends: ints = [7]> (r) {POOL.replace('(r)', '(n)')} "
            + GEMM,
        ),
    ],
)
def test_an_old_file_is_converted_and_answers_as_before(opset: int, ir: int, end: str) -> None:
    model = foreign(end, opset=opset, ir=ir)
    before = open_session(model.SerializeToString()).run({"x": images(6)})["y"]
    result = explained(model)
    assert [value.name for value in result.graph.input] == ["x"]
    after = open_session(result.SerializeToString()).run({"x": images(6)})
    np.testing.assert_array_equal(after["y"], before)
    assert {"parts.cell", "class_features.rest"} <= set(after)


@pytest.mark.parametrize(
    "end",
    [
        "p = GlobalMaxPool (r) f = Flatten (p)",
        "p = ReduceMax <keepdims: int = 0> (r, space) f = Identity (p)",
        "p = GlobalAveragePool (r) q = Relu (p) f = Flatten (q)",
        "t = Transpose <perm: ints = [0, 2, 1, 3]> (r) f = ReduceMean <keepdims: int = 0> (t, space)",
        "two = Concat <axis: int = 2> (r, r) p = GlobalAveragePool (two) f = Flatten (p)",
    ],
)
def test_features_that_are_no_mean_of_maps_in_place_have_ledgers_but_no_parts(end: str) -> None:
    result = explained(foreign(f"{end} {GEMM}"))
    described = Manifest.from_metadata({entry.key: entry.value for entry in result.metadata_props})
    assert described.rows == ("class_features",)
    assert not described.class_features.features_are_filters


@pytest.mark.parametrize("batch", [1, 4])
def test_a_frozen_batch_axis_is_freed_with_all_that_was_inferred_from_it(batch: int) -> None:
    model = onnx.shape_inference.infer_shapes(foreign(shape=f"{batch}, 3, 16, 16", y=f"{batch}, 3"))
    assert model.graph.value_info
    result = explained(model)
    outputs = [output for output in result.graph.output if output.name != "class_features.head"]
    shapes = [value.type.tensor_type.shape.dim[0] for value in (*result.graph.input, *outputs)]
    assert {dimension.dim_param for dimension in shapes} == {"batch"}
    assert not result.graph.value_info
    together = open_session(result.SerializeToString()).run({"x": images(8)})["y"]
    original = open_session(model.SerializeToString())
    before = [original.run({"x": images(8)[row : row + batch]})["y"] for row in range(0, 8, batch)]
    np.testing.assert_array_equal(together, np.concatenate(before))


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (
            "p = GlobalAveragePool (r) f = Squeeze (p) m = MatMul (f, turned) y = Add (m, head_bias)",
            "has shape [3] for 1",
        ),
        ("t = Transpose <perm: ints = [1, 0, 2, 3]> (r) " + POOL.replace("(r)", "(t)") + f" {GEMM}", "batch axis"),
    ],
)
def test_a_graph_made_for_one_picture_only_is_refused(end: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_plain(foreign(end, shape="1, 3, 16, 16", y="a, b").SerializeToString(), names=NAMES)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mean", "std", "size", "words"),
    [
        (None, (1.0, 0.0, 1.0), None, "std above 0"),
        (None, (1.0, -1.0, 1.0), None, "std above 0"),
        ((float("nan"), 0.0, 0.0), None, None, "finite numbers"),
        (None, (float("inf"), 1.0, 1.0), None, "finite numbers"),
        (None, None, (32, 32), "the input 'x' is 16 x 16, not 32 x 32; leave --size out"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    mean: Triple | None, std: Triple | None, size: tuple[int, int] | None, words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        read_plain(
            foreign().SerializeToString(), names=NAMES, preprocessing=Preprocessing(mean=mean, std=std, size=size)
        )


@pytest.mark.parametrize("size", [None, (0, 16), (-16, 16)])
def test_an_open_size_has_to_be_said(size: tuple[int, int] | None) -> None:
    model = foreign(shape="batch, 3, h, w")
    with pytest.raises(ModelError, match="the input 'x' leaves its size open; say which with --size HEIGHT,WIDTH"):
        read_plain(model.SerializeToString(), names=NAMES, preprocessing=Preprocessing(size=size))


def test_a_size_that_is_said_is_the_size_of_the_model() -> None:
    plain = read_plain(
        foreign(shape="batch, c, h, w").SerializeToString(), names=NAMES, preprocessing=Preprocessing(size=(16, 16))
    )
    assert (plain.manifest.input.height, plain.manifest.input.width) == (16, 16)
    prove(plain, attach(plain, GIVEN), Layer(), images(3))


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ("batch, 1, 16, 16", "['?', 1, 16, 16]"),
        ("batch, 768", "['?', 768]"),
    ],
)
def test_an_input_that_is_no_rgb_picture_is_refused_saying_what_it_is(shape: str, shown: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_plain(foreign(shape=shape).SerializeToString(), names=NAMES)
    assert f"the input 'x' has shape {shown} of float; expected float32 or uint8 (batch, 3, height, width)" in str(
        caught.value
    )


@pytest.mark.parametrize("kind", [onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64])
def test_an_input_of_other_numbers_is_refused(kind: int) -> None:
    model = foreign()
    cast = onnx.helper.make_node("Cast", ["numbers"], ["x"], to=onnx.TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("numbers", kind, ["b", 3, 16, 16]))
    with pytest.raises(ModelError, match=r"the input 'numbers' has shape .* expected float32 or uint8"):
        read_plain(model.SerializeToString(), names=NAMES)


@pytest.mark.parametrize("renamed", [{"x": "image"}, {"x": "image", "p": "picture"}, {"p": "image", "f": "picture"}])
def test_the_normalised_input_takes_a_name_that_is_free(renamed: dict[str, str]) -> None:
    model, mean, std = foreign(), (0.5, 0.4, 0.3), (0.25, 0.5, 0.2)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    model.graph.input[0].name = renamed.get("x", "x")
    plain = read_plain(model.SerializeToString(), names=NAMES, preprocessing=Preprocessing(mean=mean, std=std))
    answer = open_session(attach(plain, GIVEN).SerializeToString()).run_images(plain.manifest, images(2))
    shift, scale = (np.array(triple, np.float32).reshape(1, 3, 1, 1) for triple in (mean, std))
    outside = {model.graph.input[0].name: (images(2) - shift) / scale}
    np.testing.assert_array_equal(answer["y"], open_session(model.SerializeToString()).run(outside)["y"])


@pytest.mark.parametrize("max_classes", [0, -1])
def test_no_ledger_at_all_cannot_be_asked_for(max_classes: int) -> None:
    plain = read_plain(foreign().SerializeToString(), names=NAMES)
    with pytest.raises(InvalidInputError, match=f"max_classes: is {max_classes}; expected 1 or more"):
        attach(plain, GIVEN, max_classes=max_classes)


def test_comments_are_removed_however_deep_and_the_owner_s_metadata_stays() -> None:
    model = foreign(
        "s = Constant <value: tensor = int64[2] {0, -1}> () p = GlobalAveragePool (r) f = Reshape (p, s) " + GEMM
    )
    constant = next(node for node in model.graph.node if node.op_type == "Constant")
    constant.attribute[0].doc_string = constant.attribute[0].t.doc_string = "/home/me/train.py"
    model.graph.output[0].doc_string = model.graph.initializer[0].doc_string = "/home/me/train.py"
    model.graph.output[0].type.denotation = "scores"
    onnx.helper.set_model_props(model, {"licence": "MIT"})
    result = attach(read_plain(model.SerializeToString(), names=NAMES), GIVEN)
    assert b"/home" not in result.SerializeToString()
    assert {entry.key: entry.value for entry in result.metadata_props}["licence"] == "MIT"
