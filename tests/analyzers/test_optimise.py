"""A smaller copy explains as the model does, says so in its own file, and is not written where it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton

from analyzers.__main__ import main
from analyzers.attach import Selection, attach, fit
from analyzers.attach_graph import attach_graph
from analyzers.body import body
from analyzers.certificate import BOUNDS, CERTIFICATE_KEY, Certificate, Figure
from analyzers.eight_bits import Scheme, to_eight_bits
from analyzers.errors import DataError, InvalidInputError, ModelError
from analyzers.half import to_half
from analyzers.manifest import METADATA_KEY
from analyzers.optimise import optimise
from analyzers.parity import completeness_gap
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.plain import Layer, explained_plain, manifest_of, read_plain
from analyzers.probe import PROBE_KEY, Probe
from analyzers.probe import pictures as probe_pictures
from analyzers.runtime import open_session
from analyzers.smaller import named
from server.check import check
from server.client import Client
from tests.conftest import NAMES, SIZE, explain_tiny, png, random_pictures, running_server, tiny_graph

FORMS = ("fp16", "int8")

# Two convolutions, a part template's kind of mask between the map and the mean, and a number that body and mask share.
MASKED = """
<ir_version: 10, opset_import: ["" : 20]>
masked (float[batch, 3, 16, 16] image) => (float[batch, 3] logits)
{
    first = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (image, first_weight, first_bias)
    on = Relu (first)
    scaled = Mul (on, shared)
    conv = Conv <pads: ints = [1, 1, 1, 1]> (scaled, conv_weight, conv_bias)
    map = Relu (conv)
    masked = Mul (map, shared)
    pooled = GlobalAveragePool (masked)
    flat = Flatten (pooled)
    logits = Gemm <transB: int = 1> (flat, head_weight, head_bias)
}
"""


def pictures(count: int = 180) -> Pictures:
    """Return blocks of colour, whose features differ more from picture to picture than those of noise."""
    random = np.random.default_rng(3)
    blocks = random.integers(0, 256, (count, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    noise = random_pictures(count)
    return Pictures(NAMES, tuple(map(png, blocks)), noise.label, noise.split, noise.group)


def explained_masked() -> onnx.ModelProto:
    random = np.random.default_rng(5)
    model = onnx.parser.parse_model(MASKED)
    weights = {
        "first_weight": random.normal(0, 0.5, (6, 3, 3, 3)),
        "first_bias": random.normal(0, 0.1, 6),
        "shared": np.array(1.2345678),
        "conv_weight": random.normal(0, 0.3, (8, 6, 3, 3)),
        "conv_bias": random.normal(0, 0.1, 8),
        "head_weight": random.normal(0, 2, (len(NAMES), 8)),
        "head_bias": random.normal(0, 1, len(NAMES)),
    }
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    plain = read_plain(model.SerializeToString(), names=NAMES)
    shown = random_pictures()
    selection = fit(plain, [(to_model_input(shown.decoded(SIZE, SIZE)), shown.label)], k1=3, k2=3).selection
    return attach(plain, Selection(selection.sets, 3, "contribution"), layer=Layer(tensor="map"))


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return explained_masked()


@pytest.fixture
def folder(tmp_path: Path, model: onnx.ModelProto) -> Path:
    """A folder with the model's file and a pack of pictures."""
    pictures().save(tmp_path / "pack.npz")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    return tmp_path


def command(folder: Path, more: str) -> int:
    return main(f"optimise {folder}/model.onnx --data {folder}/pack.npz {more}".split())


@pytest.mark.parametrize("form", FORMS)
def test_the_file_carries_its_certificate_and_what_the_model_carried(folder: Path, form: str) -> None:
    assert command(folder, f"--to {form} --output {folder}/copy.onnx --certificate {folder}/copy.json") == 0
    original, copy = (folder / "model.onnx").read_bytes(), (folder / "copy.onnx").read_bytes()
    metadata = open_session(copy).metadata
    written = Certificate.from_metadata(metadata)
    assert written.form == form
    assert written.model_sha256 == sha256(original).hexdigest()
    tested = pictures().of_split("test")
    assert written.data.model_dump() == {"split": "test", "pictures": 60, "fingerprint": tested.fingerprint()}
    assert (written.calibration is not None) == (form == "int8")
    assert set(written.figures) >= {"same_class", "top_features_kept", "map_correlation", "peaks_moved"}
    assert written.figures["completeness_gap"].value < 1e-5
    assert not written.failed
    assert set(written.tools) == {"pellucid", "onnxruntime", "onnx"}
    beside = json.loads((folder / "copy.json").read_text())
    assert beside.pop("copy_sha256") == sha256(copy).hexdigest()
    assert beside == json.loads(metadata[CERTIFICATE_KEY])
    assert metadata[METADATA_KEY] == open_session(original).metadata[METADATA_KEY]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("form", FORMS)
def test_every_ledger_of_a_copy_adds_up_to_its_own_logits(model: onnx.ModelProto, form: str) -> None:
    _, content = optimise(model.SerializeToString(), pictures(), form, bounds=BOUNDS)
    session, known = open_session(content), manifest_of(model)
    images = to_model_input(pictures(60).decoded(SIZE, SIZE))
    answer, whole = session.run_images(known, images), open_session(model.SerializeToString()).run_images(known, images)
    assert abs(answer["logits"] - whole["logits"]).max() > 1e-5, "the copy computes with the model's own precision"
    assert completeness_gap(known.class_features, "logits", answer).max() < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_the_explanation_of_a_copy_is_the_models_own_graph(model: onnx.ModelProto, form: str) -> None:
    """Whatever follows the map reads the same numbers through the same operators, in float32."""
    images = to_model_input(pictures(32).decoded(SIZE, SIZE))
    copy = to_half(named(model)) if form == "fp16" else to_eight_bits(named(model), images)
    inside = {node.output[0] for node in body(model, manifest_of(model))}
    assert "map" in inside
    assert "masked" not in inside
    after = [node for node in model.graph.node if node.output[0] not in inside]
    makers = {node.output[0]: node for node in copy.graph.node}
    assert [makers[node.output[0]].op_type for node in after] == [node.op_type for node in after]
    numbers = {tensor.name: tensor for tensor in copy.graph.initializer}
    read = {name for node in after for name in makers[node.output[0]].input if name in numbers}
    assert not {numbers[name].data_type for name in read} & {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8}
    assert "class_features/head_weight" in read
    own = onnx.numpy_helper.to_array(numbers["shared/float32" if form == "fp16" else "shared"])
    assert own == np.float32(1.2345678)


def test_an_explanatory_graph_and_its_metadata_survive() -> None:
    plain, _, explained = explain_tiny(seed=1)
    graph = tiny_graph(plain.model)
    model = attach_graph(explained, graph)
    for form in FORMS:
        certificate, content = optimise(model.SerializeToString(), pictures(), form)
        session = open_session(content)
        assert manifest_of(onnx.load_model_from_string(content)) == manifest_of(model)
        kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != PROBE_KEY}
        assert {key: session.metadata[key] for key in kept} == kept
        assert certificate.figures["same_class"].n == 60


@pytest.mark.parametrize("form", FORMS)
def test_the_probe_is_the_copys_own(model: onnx.ModelProto, form: str) -> None:
    _, content = optimise(model.SerializeToString(), pictures(), form)
    session, known = open_session(content), manifest_of(model)
    written = Probe.from_metadata(session.metadata)
    written.compare(Probe.of(known, session.run_images(known, probe_pictures(known.input))), 1e-4)
    of_model = {entry.key: entry.value for entry in model.metadata_props}
    assert written != Probe.from_metadata(of_model)
    check(session, known)


def test_the_same_pictures_make_the_same_bytes(model: onnx.ModelProto) -> None:
    for form in FORMS:
        one, other = (optimise(model.SerializeToString(), pictures(), form) for _ in range(2))
        assert one == other


def test_convolutions_that_are_kept_stay_float32(model: onnx.ModelProto) -> None:
    images = to_model_input(pictures(32).decoded(SIZE, SIZE))
    for keep, left in (((), 0), (("first",), 1), (("last",), 1), (("first", "last"), 2)):
        copy = to_eight_bits(named(model), images, Scheme(keep=keep))
        kinds = {tensor.name: tensor.data_type for tensor in copy.graph.initializer}
        convolutions = [node for node in copy.graph.node if node.op_type == "Conv"]
        floats = [node for node in convolutions if kinds.get(node.input[1]) == onnx.TensorProto.FLOAT]
        assert len(floats) == left


def test_a_range_that_an_outlier_stretches_ends_before_it_by_percentile(model: onnx.ModelProto) -> None:
    images = to_model_input(pictures(64).decoded(SIZE, SIZE))
    wide, narrow = (to_eight_bits(named(model), images, Scheme(method=name)) for name in ("minmax", "percentile"))
    scale = [
        next(float(onnx.numpy_helper.to_array(t)) for t in copy.graph.initializer if t.name == "map_scale")
        for copy in (wide, narrow)
    ]
    assert scale[1] < scale[0]


def test_what_misses_a_bound_is_not_written_unless_forced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strict = f"--to int8 --require map_correlation=1.01 --output {folder}/out/copy.onnx"
    assert command(folder, f"{strict} --certificate {folder}/copy.json") == 1
    told = capsys.readouterr()
    assert "map_correlation" in told.err
    assert "FAILS (required at least 1.01)" in told.out
    assert not (folder / "out").exists()
    assert json.loads((folder / "copy.json").read_text())["passed"]["map_correlation"] is False
    assert command(folder, f"{strict} --force") == 0
    assert "warning" in capsys.readouterr().err
    written = Certificate.from_metadata(open_session(folder / "out" / "copy.onnx").metadata)
    assert written.failed == ["map_correlation"]


def _none(folder: Path) -> None:
    pass


def _few(folder: Path) -> None:
    pictures(90).save(folder / "pack.npz")


def _untrained(folder: Path) -> None:
    given = pictures(180)
    kept = np.concatenate([np.arange(12), np.arange(120, 180)])
    given.take(kept).save(folder / "pack.npz")


def _empty(folder: Path) -> None:
    pictures(180).take(np.arange(0)).save(folder / "pack.npz")


def _bare(folder: Path) -> None:
    model = onnx.load_model(folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save_model(model, folder / "model.onnx")


def _copy(folder: Path) -> None:
    assert command(folder, f"--to fp16 --output {folder}/copy.onnx") == 0
    (folder / "copy.onnx").replace(folder / "model.onnx")


def _uncertified(folder: Path) -> None:
    """Leave a copy that somebody took the certificate from."""
    _copy(folder)
    model = onnx.load_model(folder / "model.onnx")
    kept = [entry for entry in model.metadata_props if entry.key != CERTIFICATE_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save_model(model, folder / "model.onnx")


@pytest.mark.parametrize(
    ("spoil", "more", "sentence"),
    [
        (_bare, "--to int8", "has no 'pellucid.manifest'"),
        (_few, "--to int8", "30 pictures to compare on"),
        (_untrained, "--to int8", "12 pictures to calibrate on"),
        (_empty, "--to int8", "no picture"),
        (_copy, "--to int8", "is an fp16 copy already, of the file with SHA-256"),
        (_uncertified, "--to int8", "float16"),
        (_none, "--to int8 --calibrate 3", "calibrating on 3 pictures"),
        (_none, "--to int8 --require speed=2", "what can be required is same_class"),
        (_none, "--to int8 --output {folder}/model.onnx", "is the model itself"),
        (_none, "--to int8 --split night", "unknown split 'night'"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], more: str, sentence: str
) -> None:
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert command(folder, more.format(folder=folder)) == 1
    assert sentence in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_model_without_convolutions_cannot_be_brought_to_eight_bits(model: onnx.ModelProto) -> None:
    images = to_model_input(pictures(32).decoded(SIZE, SIZE))
    bare = named(model)
    for node in bare.graph.node:
        if node.op_type == "Conv":
            node.op_type = "NotConv"
    with pytest.raises(ModelError, match="no convolution"):
        to_eight_bits(bare, images)


def test_a_damaged_certificate_is_refused_by_whoever_reads_it(model: onnx.ModelProto) -> None:
    _, content = optimise(model.SerializeToString(), pictures(), "fp16")
    copy = onnx.load_model_from_string(content)
    for entry in copy.metadata_props:
        if entry.key == CERTIFICATE_KEY:
            entry.value = entry.value.replace('"fp16"', '"fp1"')
    session = open_session(copy.SerializeToString())
    with pytest.raises(ModelError, match="certificate is wrong at form"):
        check(session, manifest_of(copy))


@pytest.mark.parametrize(("form", "off", "passes"), [("int8", 0.06, True), ("int8", 0.3, False), ("fp16", 0.06, False)])
def test_an_int8_copy_may_answer_otherwise_on_another_kernel_but_not_by_much(
    model: onnx.ModelProto, form: str, off: float, passes: bool
) -> None:
    """Integer kernels round otherwise than the same graph's plain operators do, by some hundredths."""
    _, content = optimise(model.SerializeToString(), pictures(), form)
    copy = onnx.load_model_from_string(content)
    written = next(entry for entry in copy.metadata_props if entry.key == PROBE_KEY)
    probe = json.loads(written.value)
    largest = max(abs(value) for row in probe["logits"] for value in row)
    probe["logits"][0][0] += off * max(1.0, largest)
    written.value = json.dumps(probe)
    session = open_session(copy.SerializeToString())
    if passes:
        check(session, manifest_of(copy))
        return
    with pytest.raises(ModelError, match="its answers are not those it was written with"):
        check(session, manifest_of(copy))


def test_bounds_by_hand() -> None:
    figures = {
        "same_class": Figure(value=0.98, n=100),
        "top_features_kept": Figure(value=None, n=0),
        "completeness_gap": Figure(value=2e-3, n=100),
    }
    assert BOUNDS.judge(figures) == {"same_class": True, "top_features_kept": False, "completeness_gap": False}
    assert BOUNDS.changed("completeness_gap", 1e-2).judge(figures)["completeness_gap"]
    with pytest.raises(InvalidInputError, match="completeness_gap"):
        BOUNDS.changed("accuracy", 1.0)


def test_few_pictures_are_refused_before_any_work(model: onnx.ModelProto) -> None:
    with pytest.raises(DataError, match="to compare on"):
        optimise(model.SerializeToString(), pictures(90), "fp16")


def test_a_server_says_which_copy_answered_and_what_it_is_a_copy_of(folder: Path) -> None:
    models = folder / "models"
    assert command(folder, f"--to int8 --output {models}/masked/1/model.onnx") == 0
    content = (models / "masked" / "1" / "model.onnx").read_bytes()
    original = sha256((folder / "model.onnx").read_bytes()).hexdigest()
    with (
        running_server("--repository", str(models), "--log-level", "warning") as (address, _),
        Client(address) as client,
    ):
        (answer,) = client.explain([pictures().encoded[0]])
        told = client.get_model("masked")
        with triton.InferenceServerClient(address) as other:
            parameters = other.get_model_config("masked").config.parameters
    assert told.variant.form == "int8"
    assert told.variant.original_sha256 == original
    assert parameters["pellucid.certificate"].string_value == told.variant.certificate
    assert Certificate.model_validate_json(told.variant.certificate).data.pictures == 60
    assert answer.proof.model_sha256 == sha256(content).hexdigest() == told.sha256
    assert answer.proof.completeness_gap < 1e-5
    assert explained_plain(onnx.load_model_from_string(content)).found.head.weight.shape == (3, 8)
