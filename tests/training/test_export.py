"""torch = ONNX Runtime, files that betray nothing of the machine, and files that are the same each time."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from analyzers.attach import Selection, attach
from analyzers.errors import ModelError
from analyzers.manifest import Manifest
from analyzers.plain import Layer, Plain, set_manifest
from analyzers.prove import prove
from analyzers.runtime import open_session
from tests.conftest import ROOT
from training.backbones import BACKBONES
from training.export import MAP, compare, export, reported_layer
from training.network import Network

CLASSES = ("a", "b", "c")
SIZE = 32


def network(filters: int = 6, **options: object) -> Network:
    torch.manual_seed(0)
    net = Network(BACKBONES["small"](), len(CLASSES), size=SIZE, filters=filters, **options)
    with torch.no_grad():
        for _ in range(2):  # batch norm sees something
            net.train()(torch.rand(8, 3, SIZE, SIZE))
    net.head.decompose(np.array([[0, 1], [2, 3], [4, 5]]))
    return net.eval()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(1).random((count, 3, SIZE, SIZE), np.float32)


@pytest.fixture(scope="module")
def exported() -> tuple[Network, Plain]:
    net = network()
    return net, export(net, CLASSES, SIZE)


@pytest.mark.parametrize("batch", [1, 7])
def test_torch_and_onnx_runtime_agree(exported: tuple[Network, Plain], batch: int) -> None:
    assert compare(*exported, images(batch)) <= 1e-5


def test_torch_and_onnx_runtime_agree_on_constant_pictures(exported: tuple[Network, Plain]) -> None:
    assert compare(*exported, np.stack([np.zeros((3, SIZE, SIZE)), np.ones((3, SIZE, SIZE))]).astype(np.float32)) < 1e-5


def test_a_network_that_changed_after_its_export_is_noticed(exported: tuple[Network, Plain]) -> None:
    other = network()
    with torch.no_grad():
        other.head.bias += 0.01
    with pytest.raises(ModelError, match="torch and ONNX Runtime disagree"):
        compare(other, exported[1], images(2))


def test_an_exported_network_can_be_explained_and_its_decomposed_layer_leaves_no_rest(
    exported: tuple[Network, Plain],
) -> None:
    _, plain = exported
    layer = Layer(tensor=MAP, interpretable=True, learned_for=(0, 0, 1, 1, 2, 2))
    explained = attach(plain, Selection(np.array([[0, 1], [2, 3], [4, 5]]), 2, "contribution"), layer=layer)
    proof = prove(plain, explained, layer, images(5))
    assert proof.logits_gap == 0
    assert not open_session(explained.SerializeToString()).run({"image": images(5)})["class_features.rest"].any()


SETS = Selection(np.array([[0, 1], [2, 3], [4, 5]]), 2, "contribution")


@pytest.mark.parametrize("beta", [4.0, "per-filter"])
@pytest.mark.parametrize("peak", ["argmax", "centroid"])
def test_positions_in_the_file_are_the_centres_of_the_masks(peak: str, beta: object) -> None:
    net = network(layers=("layer2",), peak=peak, beta=beta)
    plain, layer = export(net, CLASSES, SIZE), reported_layer(net)
    assert layer.peak == peak
    assert compare(net, plain, images(7)) <= 1e-5
    explained = attach(plain, SETS, layer=layer)
    assert prove(plain, explained, layer, images(7)).moved_peaks == 0
    answer = open_session(explained.SerializeToString()).run({"image": images(7)})
    with torch.no_grad():
        maps = net(torch.from_numpy(images(7)))[1]
    np.testing.assert_array_equal(answer["parts.cell"], net.parts.state.templates.centres(maps).numpy())
    np.testing.assert_allclose(answer["parts.score"], maps.amax((2, 3)).numpy(), atol=1e-5)
    if peak == "centroid":  # or else nothing was tested
        assert (answer["parts.cell"] != maps.flatten(2).argmax(2).numpy()).any()


def test_positions_that_are_not_the_masks_are_noticed(exported: tuple[Network, Plain]) -> None:
    net = network(peak="centroid")
    plain = export(net, CLASSES, SIZE)
    wrong = attach(plain, SETS, layer=Layer(tensor=MAP))  # says and reports the highest cells
    described = Manifest.from_metadata({entry.key: entry.value for entry in wrong.metadata_props})
    mistaken = described.model_copy(update={"parts": described.parts.model_copy(update={"peak": "centroid"})})
    set_manifest(wrong, mistaken)
    with pytest.raises(ModelError, match=r"was not written: .*moved_peaks=[1-9]"):
        prove(plain, wrong, reported_layer(net), images(7))


def test_an_ordinary_layer_reports_the_peaks_that_it_was_asked_for() -> None:
    for peak in ("argmax", "centroid"):
        expected = Layer(tensor=MAP, interpretable=False, learned_for=(0,) * 6, peak=peak)
        assert reported_layer(network(peak=peak, masked=False)) == expected
    assert reported_layer(network(masked=False), interpretable=True).interpretable
    assert reported_layer(network(filters=0)).learned_for is None


def test_one_category_against_the_rest_is_two_classes_of_which_one_has_logit_zero() -> None:
    torch.manual_seed(0)
    net = Network(BACKBONES["small"](), 2, size=SIZE, filters=6, against_rest=True).eval()
    plain, layer = export(net, ("not fox", "fox"), SIZE), reported_layer(net)
    assert compare(net, plain, images(3)) <= 1e-5
    explained = attach(plain, Selection(np.array([[0, 1], [2, 3]]), 2, "contribution"), layer=layer)
    assert prove(plain, explained, layer, images(3)).completeness_gap <= 1e-5
    answer = open_session(explained.SerializeToString()).run({"image": images(3)})
    assert not answer["logits"][:, 0].any()
    assert answer["logits"][:, 1].all()


def test_classes_by_themselves_have_sigmoids(exported: tuple[Network, Plain]) -> None:
    net, plain = exported
    assert plain.manifest.scores.activation == "softmax"
    assert export(net, CLASSES, SIZE, "sigmoid").manifest.scores.activation == "sigmoid"


def test_a_file_holds_no_path_and_no_stack_trace(exported: tuple[Network, Plain]) -> None:
    data = exported[1].model.SerializeToString(deterministic=True)
    for trace in (str(ROOT).encode(), sys.prefix.encode(), b"site-packages", b"stack_trace", b".py"):
        assert trace not in data


def test_another_process_exports_the_same_bytes(exported: tuple[Network, Plain]) -> None:
    program = (
        "import hashlib; from tests.training.test_export import *;"
        "data = export(network(), CLASSES, SIZE).model.SerializeToString(deterministic=True);"
        "print(hashlib.sha256(data).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    own = hashlib.sha256(exported[1].model.SerializeToString(deterministic=True)).hexdigest()
    assert run.stdout.split()[-1] == own


def test_the_normalisation_is_inside_the_file(exported: tuple[Network, Plain]) -> None:
    manifest = exported[1].manifest
    assert manifest.input.mean == (0.485, 0.456, 0.406)
    assert manifest.input.value_range == (0.0, 1.0)


def test_an_ordinary_network_exports_alike() -> None:
    torch.manual_seed(0)
    net = Network(BACKBONES["resnet20"](), len(CLASSES), size=SIZE)
    assert compare(net, export(net, CLASSES, SIZE), images(3)) <= 1e-5
