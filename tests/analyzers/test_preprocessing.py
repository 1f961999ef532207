"""What a model wants its pictures to be goes into its graph: held against the file as it came, fed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from analyzers.__main__ import main
from analyzers.attach import Selection, attach
from analyzers.errors import ModelError
from analyzers.manifest import METADATA_KEY
from analyzers.plain import Layer, manifest_of, read_onnx, read_plain
from analyzers.preprocessing import NOTHING, Preprocessing
from analyzers.prove import prove
from analyzers.runtime import open_session
from tests.conftest import NAMES, SIZE, random_pictures, tiny_plain

IMAGES = np.random.default_rng(3).random((4, 3, SIZE, SIZE), np.float32)
GIVEN = Selection(np.array([[0], [1], [2]]), None, "given")


def tiny(layout: str = "NCHW", kind: int = TensorProto.FLOAT, shape: list[object] | None = None) -> onnx.ModelProto:
    """Return the tiny classifier with another input."""
    model = onnx.load_model_from_string(tiny_plain())
    source = "image"
    nodes = []
    if kind == TensorProto.UINT8:
        nodes.append(helper.make_node("Cast", [source], ["floats"], to=TensorProto.FLOAT))
        source = "floats"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [source], ["planes"], perm=[0, 3, 1, 2]))
        source = "planes"
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.input[0] = source
    default = ["batch", 3, SIZE, SIZE] if layout == "NCHW" else ["batch", SIZE, SIZE, 3]
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", kind, shape or default))
    return model


def by_hand(wanted: Preprocessing, layout: str, kind: int) -> np.ndarray:
    """Return the pictures as the model wants them, literally."""
    mean = np.array(wanted.mean or (0, 0, 0), np.float64).reshape(1, 3, 1, 1)
    std = np.array(wanted.std or (1, 1, 1), np.float64).reshape(1, 3, 1, 1)
    low, high = wanted.value_range or ((0, 255) if kind == TensorProto.UINT8 else (0, 1))
    pictures = low + (high - low) * (IMAGES - mean) / std
    if wanted.channels == "BGR":
        pictures = pictures[:, [2, 1, 0]]
    if layout == "NHWC":
        pictures = pictures.transpose(0, 2, 3, 1)
    if kind == TensorProto.UINT8:
        return np.round(pictures).astype(np.uint8)
    return np.ascontiguousarray(pictures, np.float32)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("wanted", "kind"),
    [
        (NOTHING, TensorProto.FLOAT),
        (NOTHING, TensorProto.UINT8),
        (Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)), TensorProto.FLOAT),
        (Preprocessing(value_range=(-1, 1)), TensorProto.FLOAT),
        (Preprocessing(value_range=(0, 255), channels="BGR", mean=(0.4, 0.5, 0.6)), TensorProto.FLOAT),
        (Preprocessing(channels="BGR"), TensorProto.UINT8),
    ],
)
def test_pictures_in_0_to_1_give_what_the_file_gives_for_pictures_made_by_hand(
    layout: str, wanted: Preprocessing, kind: int
) -> None:
    model = tiny(layout, kind)
    expected = open_session(model.SerializeToString()).run({"image": by_hand(wanted, layout, kind)})["logits"]
    plain = read_plain(model.SerializeToString(), names=NAMES, preprocessing=wanted)
    explained = attach(plain, GIVEN)
    prove(plain, explained, Layer(), IMAGES)
    answer = open_session(explained.SerializeToString()).run_images(manifest_of(explained), IMAGES)["logits"]
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())
    assert manifest_of(explained).class_features.exact


def test_a_layout_that_the_shape_does_not_tell_has_to_be_said() -> None:
    open_shape = ["batch", "a", "b", "c"]
    model = tiny("NHWC", shape=open_shape).SerializeToString()
    with pytest.raises(ModelError, match="leaves its size open"):
        read_plain(model, names=NAMES)
    wanted = Preprocessing(size=(SIZE, SIZE), layout="NHWC")
    assert read_plain(model, names=NAMES, preprocessing=wanted).found.map is not None


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Preprocessing(value_range=(1, 0)), "cannot range from 1 to 0"),
        (Preprocessing(value_range=(0, float("inf"))), "cannot range from 0 to inf"),
        (Preprocessing(std=(0.1, 0.0, 0.1)), "std above 0"),
        (Preprocessing(layout="NHWC"), "expected float32 or uint8 (batch, 3, height, width)"),
    ],
)
def test_a_pre_processing_that_cannot_be_meant_is_refused(wanted: Preprocessing, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_plain(tiny_plain(), names=NAMES, preprocessing=wanted)
    assert words in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_pictures(60).save(tmp_path / "pack.npz")
    (tmp_path / "plain.onnx").write_bytes(tiny("NHWC").SerializeToString())
    return tmp_path


def test_a_file_says_the_same_as_options_and_options_win(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "p.toml").write_text('mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\nchannels = "BGR"\n')
    attach_it = f"attach {folder}/plain.onnx --data {folder}/pack.npz --k1 2 --k2 2"
    assert main([*attach_it.split(), "--preprocessing", f"{folder}/p.toml", "--output", f"{folder}/a.onnx"]) == 0
    options = "--mean .5,.5,.5 --std .5,.5,.5 --channels BGR"
    assert main([*attach_it.split(), *options.split(), "--output", f"{folder}/b.onnx"]) == 0
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()
    command = [*attach_it.split(), "--preprocessing", f"{folder}/p.toml", "--mean", "0,0,0"]
    assert main([*command, "--output", f"{folder}/c.onnx"]) == 0
    assert manifest_of(onnx.load(folder / "c.onnx")).input.mean == (0.0, 0.0, 0.0)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mean = 1", "mean: Input should be a valid tuple; the keys are size, mean, std"),
        ("colour = 1", "colour: Extra inputs are not permitted; the keys are"),
        ("mean = [", "is not TOML"),
        ('channels = "GBR"', "channels: Input should be 'RGB' or 'BGR'"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (folder / "p.toml").write_text(text)
    command = f"attach {folder}/plain.onnx --data {folder}/pack.npz --preprocessing {folder}/p.toml"
    assert main([*command.split(), "--output", f"{folder}/a.onnx"]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (folder / "a.onnx").exists()


def outside(folder: Path, location: str) -> Path:
    """Write the tiny classifier with its head's weights in a file of their own."""
    model = onnx.load_model_from_string(tiny_plain())
    for tensor in model.graph.initializer:
        if tensor.name == "head_weight":
            (folder / "weights.bin").write_bytes(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", "0"), ("length", str(4 * 8 * 3))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
    path = folder / "inner" / "model.onnx" if location.startswith("..") else folder / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_model_are_read_into_it(tmp_path: Path) -> None:
    data = read_onnx(outside(tmp_path, "weights.bin"))
    head = read_plain(data, names=NAMES).found.head
    np.testing.assert_array_equal(head.weight, read_plain(tiny_plain(), names=NAMES).found.head.weight)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "nowhere.bin", "", "link.bin"])
def test_weights_elsewhere_are_not_followed(tmp_path: Path, location: str) -> None:
    if location == "link.bin":
        (tmp_path / "link.bin").symlink_to("/etc/hostname")
    path = outside(tmp_path, location)
    with pytest.raises(ModelError, match="the model keeps 'head_weight' in") as caught:
        read_onnx(path)
    assert "outside its own folder" in str(caught.value) or "not beside it" in str(caught.value)


def control_flow(model: onnx.ModelProto) -> None:
    then = helper.make_graph(
        [helper.make_node("Identity", ["logits_"], ["yes"])], "then", [], [helper.make_empty_tensor_value_info("yes")]
    )
    model.graph.node[-1].output[0] = "logits_"
    other = onnx.GraphProto()
    other.CopyFrom(then)
    other.node[0].output[0] = other.output[0].name = "no"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "always"))
    model.graph.node.append(
        helper.make_node("If", ["always"], ["logits"], name="choose", then_branch=then, else_branch=other)
    )


def half(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def quantised(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.1, np.float32), "step"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(3, np.uint8), "zero"))
    gemm = model.graph.node[-1]
    source = gemm.input[0]
    gemm.input[0] = "back"
    model.graph.node.insert(4, helper.make_node("DequantizeLinear", ["small", "step", "zero"], ["back"], name="dq"))
    model.graph.node.insert(4, helper.make_node("QuantizeLinear", [source, "step", "zero"], ["small"], name="q"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (control_flow, "control flow at If 'choose'"),
        (half, "keeps float16 numbers, first 'conv_weight'"),
        (quantised, "is quantised, first at QuantizeLinear 'q'"),
    ],
)
def test_what_cannot_be_explained_is_refused_with_its_place(change: object, words: str) -> None:
    model = onnx.load_model_from_string(tiny_plain())
    change(model)
    with pytest.raises(ModelError) as caught:
        read_plain(model.SerializeToString(), names=NAMES)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_that_was_joined_to_a_batch_of_one_is_joined_to_every_picture() -> None:
    """A batch axis frozen at 1, a reshape written for it, and a class token that is a constant (1, 1, 8)."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        tokens (float[1, 3, 16, 16] image) => (float[1, 3] y) {
            c = Conv <strides: ints = [4, 4]> (image, k) f = Reshape (c, flat)
            t = Transpose <perm: ints = [0, 2, 1]> (f) j = Concat <axis: int = 1> (token, t)
            m = ReduceMean <keepdims: int = 1> (j, axis) s = Add (j, m) n = LayerNormalization (s, scale)
            h = Gather <axis: int = 1> (n, first) y = Gemm (h, w, b)
        }
    """)
    random = np.random.default_rng(0)
    arrays = {"k": random.normal(0, 1, (8, 3, 4, 4)), "token": random.normal(0, 1, (1, 1, 8)), "scale": np.ones(8)}
    arrays |= {"w": random.normal(0, 1, (8, 3)), "b": np.zeros(3)}
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    for name, array in {"flat": np.array([1, 8, 16]), "axis": np.array([1]), "first": np.array(0)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    plain = read_plain(model.SerializeToString(), names=NAMES)
    together = open_session(plain.model.SerializeToString()).run({"image": IMAGES})["y"]
    session = open_session(model.SerializeToString())
    alone = np.concatenate([session.run({"image": IMAGES[row : row + 1]})["y"] for row in range(4)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_inspect_says_what_attach_would_find(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"{folder}/plain.onnx"]) == 0
    text = capsys.readouterr().out
    assert "8 features in 'flat'" in text
    assert "'relu', (8, 8) cells" in text
    assert main(["inspect", f"{folder}/plain.onnx", "--json"]) == 0
    import json

    found = json.loads(capsys.readouterr().out)
    assert (found["classes"], found["features"]["count"], found["exact"]) == (3, 8, True)
    assert found["map"]["grid"]["stride"] == [2.0, 2.0]
    assert METADATA_KEY not in found


def test_a_warning_is_given_where_the_model_is_no_better_than_chance(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = f"attach {folder}/plain.onnx --data {folder}/pack.npz --output {folder}/m.onnx"
    assert main(command.split()) == 0
    assert "are the pre-processing and the order of the class names right?" in caplog.text
