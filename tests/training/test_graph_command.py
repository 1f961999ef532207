"""`pellucid-train graph`: what it prints and writes, and what it says when something is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from analyzers.conv_maps import read_network
from analyzers.fingerprint import maps_fingerprint
from analyzers.graph_file import load_graph
from tests.analyzers.test_conv_maps import residual
from tests.conftest import SIZE, explain_tiny, random_pictures, tiny_plain
from training.__main__ import main


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    random_pictures(90).save(tmp_path / "pictures.npz")
    return tmp_path / "pictures.npz"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "plain.onnx").write_bytes(tiny_plain())
    return tmp_path / "plain.onnx"


def graph(model: Path, pack: Path, *more: str) -> int:
    output = model.with_name("graph.npz")
    return main(["graph", str(model), "--data", str(pack), "--iterations=2", "--output", str(output), *more])


def test_without_layers_the_maps_are_listed_and_sensible_ones_taken(
    tmp_path: Path, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = tmp_path / "net.onnx"
    network.write_bytes(residual())
    assert graph(network, pack) == 0
    printed = capsys.readouterr().out
    assert "    inner_relu (4 filters of 16 x 16 cells, every 2 pixels)" in printed
    assert "  * block (4 filters of 16 x 16 cells, every 2 pixels)" in printed
    assert "  * last (4 filters of 8 x 8 cells, every 4 pixels)" in printed
    assert "nodes 48 of 'last', 92 of 'block'; learned from 60 pictures" in printed
    assert "cache 0.00 GB in 2 passes, peak memory" in printed
    learned = load_graph(tmp_path / "graph.npz")
    assert [layer.tensor for layer in learned.layers] == ["last", "block"]
    assert learned.root is not None
    assert learned.root.mirrored
    assert learned.model == maps_fingerprint(read_network(residual())[0], ["last", "block"])
    assert (learned.settings["data"], learned.settings["split"]) == ("pictures.npz", "train")
    assert not list(tmp_path.glob(".graph*"))  # the blocks are gone


def test_layers_nodes_and_framing_are_as_they_were_asked_for(tmp_path: Path, pack: Path) -> None:
    network = tmp_path / "net.onnx"
    network.write_bytes(residual())
    options = ("--layers", "last,inner_relu", "--nodes", "3,5", "--cropped", "--split", "all")
    assert graph(network, pack, *options) == 0
    learned = load_graph(tmp_path / "graph.npz")
    assert [layer.filter.shape for layer in learned.layers] == [(1, 12), (1, 20)]
    assert learned.root is None
    assert learned.pictures == 90


def test_a_graph_a_class_takes_the_filters_that_the_explained_file_names(tmp_path: Path, pack: Path) -> None:
    explained = explain_tiny()[2]
    path = tmp_path / "model.onnx"
    path.write_bytes(explained.SerializeToString())
    sets = next(onnx.numpy_helper.to_array(t) for t in explained.graph.initializer if t.name == "class_features/index")
    assert graph(path, pack, "--per-class", "--cropped") == 0
    learned = load_graph(tmp_path / "graph.npz")
    assert learned.classes == ("cat", "dog", "owl")
    for number in range(3):
        assert set(learned.layers[0].filter[number]) - {-1} == set(sets[number, :, 0].tolist()) - {-1}


def test_reference_pictures_raise_thresholds_and_teach_nothing(model: Path, pack: Path, tmp_path: Path) -> None:
    random_pictures(40, seed=7).save(tmp_path / "reference.npz")
    assert graph(model, pack) == 0
    alone = load_graph(tmp_path / "graph.npz").layers[0]
    assert graph(model, pack, "--reference", str(tmp_path / "reference.npz")) == 0
    beside = load_graph(tmp_path / "graph.npz").layers[0]
    assert (beside.threshold > alone.threshold).any()
    assert beside.top_picture.max() < 60


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--layers", "relu,lost"), "there is no conv map 'lost'; there are relu (8 filters of 8 x 8 cells"),
        (("--nodes", "3,4"), "--nodes has 2 numbers for 1 layers"),
        (("--nodes", "65"), "65 nodes do not fit the 64 cells of 'relu'"),
        (("--memory", "0"), "--memory and --iterations take numbers above 0"),
        (("--memory", "1e-6"), "one filter of 'relu' takes 0.000 GB for 60 pictures"),
        (("--split", "nowhere"), "unknown split 'nowhere'"),
        (("--size", "9,9"), f"is {SIZE} x {SIZE}, not 9 x 9"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_and_nothing_is_written(
    model: Path, pack: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert graph(model, pack, *options) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not model.with_name("graph.npz").exists()


def test_too_few_pictures_of_a_class_name_it(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = random_pictures(80)
    few = tmp_path / "few.npz"
    pictures.take(np.flatnonzero((pictures.label != 1) | (np.arange(80) < 30))).save(few)
    assert graph(model, few, "--per-class") == 1
    error = capsys.readouterr().err
    assert "too few pictures, 18 of 'cat', 10 of 'dog', 17 of 'owl'; a graph takes at least 20" in error


def test_a_damaged_network_is_told_by_its_maps(model: Path, pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = onnx.load(model)
    weight = next(t for t in network.graph.initializer if t.name == "conv_weight")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[2] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(array, "conv_weight"))
    model.write_bytes(network.SerializeToString())
    assert graph(model, pack) == 1
    assert "'relu' holds NaN or infinity for picture 0" in capsys.readouterr().err
