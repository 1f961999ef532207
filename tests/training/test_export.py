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
from analyzers.plain import Layer, Plain
from analyzers.prove import prove
from analyzers.runtime import open_session
from tests.conftest import ROOT
from training.backbones import BACKBONES
from training.export import MAP, compare, export
from training.network import Network

CLASSES = ("a", "b", "c")
SIZE = 32


def network(filters: int = 6) -> Network:
    torch.manual_seed(0)
    net = Network(BACKBONES["small"](), len(CLASSES), size=SIZE, filters=filters)
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
