"""Attached explanations are exact, change nothing, and are refused where they could not be."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from analyzers.attach import Selection, attach, fit
from analyzers.class_features import membership
from analyzers.errors import InvalidInputError, ModelError
from analyzers.plain import Layer, probe, read_plain
from analyzers.preprocessing import Preprocessing
from analyzers.prove import prove
from analyzers.runtime import open_session
from tests import oracles
from tests.conftest import NAMES, ROOT, SIZE, TINY, explain_tiny, tiny_plain

SETS = np.array([[0, 1], [2, 3], [6, 7]])
GIVEN = Selection(SETS, None, "given")


def images(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, SIZE, SIZE), np.float32)


def changed(*replacements: tuple[str, str], opset: int = 20) -> bytes:
    """Return the tiny classifier with lines of its graph replaced."""
    text = TINY.replace('"" : 20', f'"" : {opset}')
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    model = onnx.parser.parse_model(text)
    weights = onnx.load_model_from_string(tiny_plain()).graph.initializer
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(w for w in weights if w.name in used)
    transposed = numpy_helper.to_array(next(w for w in weights if w.name == "head_weight")).T.copy()
    extra = {
        "head_weight_t": transposed,
        "head_bias_row": numpy_helper.to_array(next(w for w in weights if w.name == "head_bias"))[None],
        "axes": np.array([2, 3]),
        "minus": np.array([-2, -1]),
        "shape": np.array([0, -1]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in extra.items() if n in used)
    return model.SerializeToString()


GEMM = "logits = Gemm <transB: ints = 1> (flat, head_weight, head_bias)".replace("ints", "int")
POOL = "pooled = GlobalAveragePool (relu)"
FLAT = "flat = Flatten (pooled)"
HEADS = {
    "Gemm": (),
    "Gemm, weights not transposed": ((GEMM, "logits = Gemm (flat, head_weight_t, head_bias)"),),
    "Gemm, bias as a row": ((GEMM, "logits = Gemm <transB: int = 1> (flat, head_weight, head_bias_row)"),),
    "Gemm without bias": ((GEMM, "logits = Gemm <transB: int = 1> (flat, head_weight)"),),
    "MatMul, Add": ((GEMM, "m = MatMul (flat, head_weight_t)\n    logits = Add (m, head_bias)"),),
    "Add of bias first": ((GEMM, "m = MatMul (flat, head_weight_t)\n    logits = Add (head_bias, m)"),),
    "MatMul alone": ((GEMM, "logits = MatMul (flat, head_weight_t)"),),
    "Softmax behind": ((GEMM, GEMM.replace("logits", "z") + "\n    logits = Softmax (z)"),),
    "Sigmoid behind": ((GEMM, GEMM.replace("logits", "z") + "\n    logits = Sigmoid (z)"),),
    "Identity behind": ((GEMM, GEMM.replace("logits", "z") + "\n    logits = Identity (z)"),),
    "ReduceMean": ((POOL, "pooled = ReduceMean <keepdims: int = 1> (relu, axes)"),),
    "ReduceMean, negative axes": ((POOL, "pooled = ReduceMean <keepdims: int = 1> (relu, minus)"),),
    "ReduceMean without the axes": (
        (POOL, "pooled = ReduceMean <keepdims: int = 0> (relu, axes)"),
        (FLAT, "flat = Identity (pooled)"),
    ),
    "Reshape": ((FLAT, "flat = Reshape (pooled, shape)"),),
    "Squeeze": ((FLAT, "flat = Squeeze (pooled, axes)"),),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_usual_head_is_found_and_explained_exactly(name: str) -> None:
    plain = read_plain(changed(*HEADS[name]), names=NAMES)
    assert plain.found.map == "relu"
    explained = attach(plain, GIVEN)
    proof = prove(plain, explained, Layer(), images(6))
    assert (proof.logits_gap, proof.moved_peaks) == (0, 0)
    assert proof.completeness_gap < 1e-5
    answer = open_session(explained.SerializeToString()).run({"image": images(6)})
    pooled = probe(plain)[0].run({"image": images(6)})[plain.found.pooled]
    for row in range(6):
        for rank, c in enumerate(answer["class_features.classes"][row]):
            own, rest, logit = oracles.ledger(pooled[row], plain.found.head.weight, plain.found.head.bias, c, SETS[c])
            got = answer["class_features.contributions"][row, rank]
            np.testing.assert_allclose(got, [own[j] for j in SETS[c]], atol=1e-5)
            assert answer["class_features.rest"][row, c] == pytest.approx(rest, abs=1e-5)
            assert answer[plain.found.logits][row, c] == pytest.approx(logit, abs=1e-4)


def test_the_activation_behind_the_logits_is_noticed() -> None:
    assert read_plain(changed(*HEADS["Sigmoid behind"]), names=NAMES).manifest.scores.activation == "sigmoid"
    assert read_plain(changed(*HEADS["Softmax behind"]), names=NAMES).manifest.scores.tensor == "z"


def test_logits_are_the_same_to_the_bit_and_so_is_every_answer_alone_and_in_a_batch() -> None:
    plain, _, explained = explain_tiny()
    session = open_session(explained.SerializeToString())
    batch = images(8)
    together = session.run({"image": batch})
    assert np.array_equal(
        open_session(plain.model.SerializeToString()).run({"image": batch})["logits"], together["logits"]
    )
    for row in range(8):
        alone = session.run({"image": batch[row : row + 1]})
        np.testing.assert_array_equal(alone.pop("class_features.head"), together["class_features.head"])
        for name, value in alone.items():
            assert np.array_equal(value[0], together[name][row]), name


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads: int) -> None:
    data = explain_tiny()[2].SerializeToString()
    one = open_session(data, threads=1).run({"image": images(5)})
    other = open_session(data, threads=threads).run({"image": images(5)})
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_fewer_ledgers_than_classes_are_those_of_the_best_classes() -> None:
    plain = read_plain(tiny_plain(), names=NAMES)
    explained = attach(plain, GIVEN, max_classes=2)
    prove(plain, explained, Layer(), images(5))
    answer = open_session(explained.SerializeToString()).run({"image": images(5)})
    assert answer["class_features.classes"].shape == (5, 2)
    order = np.argsort(-answer["logits"], axis=1)[:, :2]
    assert np.array_equal(answer["class_features.classes"], order)


def test_ragged_index_sets_are_padded_and_stay_exact() -> None:
    plain = read_plain(tiny_plain(), names=NAMES)
    sets = np.array([[0, 1, 2], [3, -1, -1], [4, 7, -1]])
    explained = attach(plain, Selection(sets, None, "given"))
    prove(plain, explained, Layer(), images(5))
    answer = open_session(explained.SerializeToString()).run({"image": images(5)})
    padded = answer["class_features.features"][..., 0] < 0
    assert padded.any()
    assert not answer["class_features.contributions"][padded].any()


def test_peaks_and_scores_are_those_of_the_map() -> None:
    plain, _, explained = explain_tiny()
    session, tensor = probe(plain)
    flat = session.run({"image": images(4)})[tensor].reshape(4, 8, -1)
    answer = open_session(explained.SerializeToString()).run({"image": images(4)})
    assert np.array_equal(answer["parts.cell"], flat.argmax(2))
    assert np.array_equal(answer["parts.score"], flat.max(2))


def test_a_black_picture_and_a_tied_map_peak_at_the_first_cell() -> None:
    explained = explain_tiny()[2]
    answer = open_session(explained.SerializeToString()).run({"image": np.zeros((1, 3, SIZE, SIZE), np.float32)})
    silent = answer["parts.score"][0] == 0
    assert silent.any()
    assert not answer["parts.cell"][0][silent].any()


def test_normalisation_goes_into_the_graph() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = read_plain(tiny_plain(), names=NAMES, preprocessing=Preprocessing(mean=mean, std=std))
    explained = attach(plain, GIVEN)
    assert plain.manifest.input.mean == mean
    outside = (images(3) - np.array(mean, np.float32).reshape(1, 3, 1, 1)) / np.array(std, np.float32).reshape(
        1, 3, 1, 1
    )
    inside = open_session(explained.SerializeToString()).run({plain.manifest.input.tensor: images(3)})["logits"]
    bare = open_session(tiny_plain()).run({"image": outside})["logits"]
    np.testing.assert_array_equal(inside, bare)


def test_an_old_operator_set_is_converted() -> None:
    old = changed((POOL, "pooled = ReduceMean <axes: ints = [2, 3], keepdims: int = 1> (relu)"), opset=13)
    plain = read_plain(old, names=NAMES)
    prove(plain, attach(plain, GIVEN), Layer(), images(2))


def test_a_fixed_batch_axis_is_freed() -> None:
    model = onnx.load_model_from_string(tiny_plain())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    plain = read_plain(model.SerializeToString(), names=NAMES)
    prove(plain, attach(plain, GIVEN), Layer(), images(4))


def test_a_head_on_flattened_cells_gets_ledgers_but_no_parts() -> None:
    data = changed((POOL, "pooled = MaxPool <kernel_shape: ints = [8, 8]> (relu)"))
    plain = read_plain(data, names=NAMES)
    explained = attach(plain, GIVEN)
    prove(plain, explained, Layer(), images(3))
    names = {output.name for output in explained.graph.output}
    assert "parts.cell" not in names
    assert "class_features.rest" in names


def test_files_are_the_same_each_time_and_betray_nothing() -> None:
    data = explain_tiny()[2].SerializeToString(deterministic=True)
    program = (
        "import hashlib; from tests.conftest import explain_tiny;"
        "print(hashlib.sha256(explain_tiny()[2].SerializeToString(deterministic=True)).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == hashlib.sha256(data).hexdigest()
    for trace in (str(ROOT), sys.prefix, "site-packages"):
        assert trace.encode() not in data


def test_what_exporters_leave_behind_is_removed() -> None:
    model = onnx.load_model_from_string(tiny_plain())
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = "/somewhere/train.py"
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "stack_trace", "/somewhere/train.py"
    plain = read_plain(model.SerializeToString(), names=NAMES)
    assert b"/somewhere" not in attach(plain, GIVEN).SerializeToString()


def two_inputs(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["batch", 3, 16, 16]))


def two_outputs(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, ["batch", 8]))


def grey(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1


def external(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"


@pytest.mark.parametrize(
    ("change", "words"),
    [(two_inputs, "2 inputs (image, mask)"), (two_outputs, "2 outputs (logits, flat)"), (external, "other files")],
)
def test_a_model_that_is_not_one_picture_in_one_score_out_is_refused(
    change: Callable[[ModelProto], None], words: str
) -> None:
    model = onnx.load_model_from_string(tiny_plain())
    change(model)
    with pytest.raises(ModelError) as caught:
        read_plain(model.SerializeToString(), names=NAMES)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("replacements", "words"),
    [
        (((GEMM, GEMM.replace("logits", "z") + "\n    logits = Relu (z)"),), "'logits' is what is made by Relu"),
    ],
)
def test_a_head_that_cannot_be_explained_is_refused_naming_the_place(
    replacements: tuple[tuple[str, str], ...], words: str
) -> None:
    with pytest.raises(ModelError) as caught:
        read_plain(changed(*replacements), names=NAMES)
    assert words in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"not onnx", tiny_plain()[:200]])
def test_what_is_not_onnx_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        read_plain(data, names=NAMES)


def test_names_sizes_and_repeated_attachment_are_checked() -> None:
    with pytest.raises(ModelError, match="3 classes and there are 2 names"):
        read_plain(tiny_plain(), names=NAMES[:2])
    model = onnx.load_model_from_string(tiny_plain())
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "side"
    with pytest.raises(ModelError, match="--size"):
        read_plain(model.SerializeToString(), names=NAMES)
    read_plain(model.SerializeToString(), names=NAMES, preprocessing=Preprocessing(size=(16, 16)))
    grey(model)
    with pytest.raises(ModelError, match="expected float32"):
        read_plain(model.SerializeToString(), names=NAMES, preprocessing=Preprocessing(size=(16, 16)))
    with pytest.raises(ModelError, match="explained already"):
        read_plain(explain_tiny()[2].SerializeToString(), names=NAMES)


def test_flags_that_contradict_the_file_are_refused() -> None:
    plain = read_plain(tiny_plain(), names=NAMES)
    from analyzers.plain import set_manifest

    set_manifest(plain.model, plain.manifest)
    data = plain.model.SerializeToString()
    assert read_plain(data, preprocessing=Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))).manifest == plain.manifest
    with pytest.raises(ModelError, match="normalises its pictures itself"):
        read_plain(data, preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5)))


@pytest.mark.parametrize("tensor", ["class_features/rest_weight", "class_features/weight", "class_features/class_bias"])
def test_a_tampered_file_is_not_proved(tensor: str) -> None:
    plain, _, explained = explain_tiny()
    found = next(t for t in explained.graph.initializer if t.name == tensor)
    found.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(found) * 1.01 + 0.01, tensor))
    with pytest.raises(ModelError, match="does not agree"):
        prove(plain, explained, Layer(), images(3))


def test_a_file_with_moved_peaks_is_not_proved() -> None:
    plain, _, explained = explain_tiny()
    node = next(n for n in explained.graph.node if n.op_type == "ArgMax")
    node.op_type = "ArgMin"
    with pytest.raises(ModelError, match="does not agree"):
        prove(plain, explained, Layer(), images(3))


def test_sets_and_rest_share_out_the_whole_layer() -> None:
    plain, selection, explained = explain_tiny()
    rest = next(t for t in explained.graph.initializer if t.name == "class_features/rest_weight")
    own = membership(plain.found.head, selection.sets)
    kept = np.where(own, plain.found.head.weight, 0)
    np.testing.assert_array_equal(kept + numpy_helper.to_array(rest), plain.found.head.weight)


def test_a_class_with_fewer_pictures_than_features_is_refused_by_name() -> None:
    plain = read_plain(tiny_plain(), names=NAMES)
    label = np.array([0] * 4 + [1] * 2 + [2] * 4)
    batch = [(images(10), label)]
    with pytest.raises(
        InvalidInputError, match=r"data: has 2 pictures of class 1 \('dog'\), too few to find 3 features"
    ):
        fit(plain, batch, k1=3, k2=3)
    assert fit(plain, batch, k1=2, k2=3).selection.sets.shape == (3, 3)
    assert fit(plain, batch, k1=3, k2=3, rule="weight").selection.rule == "weight"
