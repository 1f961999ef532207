"""A graph attached to a model file: the other outputs unchanged, and every misfit refused in one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from analyzers.__main__ import main
from analyzers.attach_graph import attach_graph, attached_graph, calibrate, prove_graph, without_graph
from analyzers.baseline import Baseline, forget
from analyzers.errors import ModelError
from analyzers.explanatory_graph import ExplanatoryGraph
from analyzers.fingerprint import maps_fingerprint
from analyzers.graph_file import save_graph
from analyzers.manifest import Manifest
from analyzers.plain import manifest_of
from analyzers.runtime import open_session
from tests.conftest import FILTERS, NAMES, SIZE, explain_tiny, random_pictures, tiny_graph, tiny_plain


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return explain_tiny()[2]


@pytest.fixture(scope="module")
def graph(model: onnx.ModelProto) -> ExplanatoryGraph:
    return tiny_graph(model)


def pictures(count: int = 6) -> np.ndarray:
    return np.random.default_rng(2).random((count, 3, SIZE, SIZE), np.float32)


def run(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    return open_session(model.SerializeToString()).run({"image": images})


@pytest.mark.parametrize("form", ["hard", "soft"])
@pytest.mark.parametrize("classes", [(), NAMES])
def test_other_outputs_are_unchanged_to_the_bit(model: onnx.ModelProto, form: str, classes: tuple[str, ...]) -> None:
    explained = attach_graph(model, tiny_graph(model, classes), nodes=4, form=form)
    before, after = run(model, pictures()), run(explained, pictures())
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert prove_graph(model, explained, pictures()) <= 1e-4
    assert manifest_of(explained).rows == ("parts", "explanatory_graph", "class_features")
    section = manifest_of(explained).explanatory_graph
    assert sum(number >= 0 for number in section.layers[-1].node[0]) == 4
    if classes:
        assert after[section.graph].tolist() == before["logits"].argmax(1).tolist()


def test_a_graph_is_replaced_and_taken_away(model: onnx.ModelProto, graph: ExplanatoryGraph) -> None:
    once, again = attach_graph(model, graph, nodes=3), attach_graph(attach_graph(model, graph), graph, nodes=3)
    assert again.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)
    bare = without_graph(once)
    assert [output.name for output in bare.graph.output] == [output.name for output in model.graph.output]
    assert len(bare.graph.node) == len(model.graph.node)


def test_what_was_attached_can_be_read_again(model: onnx.ModelProto, graph: ExplanatoryGraph) -> None:
    explained = attach_graph(model, graph, nodes=5)
    found, section = attached_graph(explained), manifest_of(explained).explanatory_graph
    assert attached_graph(model) is None
    for layer, whole, described in zip(found.layers, graph.layers, section.layers, strict=True):
        for name in ("filter", "prior", "mean", "spread", "quantiles"):
            np.testing.assert_array_equal(getattr(layer, name)[0], getattr(whole, name)[0, list(described.node[0])])


def test_a_graph_of_another_model_is_refused(model: onnx.ModelProto, graph: ExplanatoryGraph) -> None:
    other = explain_tiny(seed=1)[2]
    with pytest.raises(ModelError, match="learned from another model: the weights or operators"):
        attach_graph(other, graph)
    lost = replace(graph, layers=tuple(replace(layer, tensor="rleu") for layer in graph.layers))
    with pytest.raises(ModelError, match="the graph's layer 'rleu' is not in the model; the nearest names are"):
        attach_graph(model, lost)
    with pytest.raises(ModelError, match="classes that the model has not, or in another order: the order"):
        attach_graph(model, replace(tiny_graph(model, NAMES), classes=NAMES[::-1]))
    with pytest.raises(ModelError, match="0 nodes of each layer cannot be reported; expected 1 or more"):
        attach_graph(model, graph, nodes=0)


def test_a_proof_finds_nodes_that_are_elsewhere(model: onnx.ModelProto, graph: ExplanatoryGraph) -> None:
    explained = attach_graph(model, graph)
    moved = tuple(replace(layer, prior=layer.prior[..., ::-1].copy()) for layer in graph.layers)
    wrong = attach_graph(model, replace(graph, layers=moved))
    for entry in wrong.metadata_props:
        if entry.key == "pellucid.explanatory_graph":
            entry.value = next(e.value for e in explained.metadata_props if e.key == entry.key)
    with pytest.raises(ModelError, match="nodes are not where numpy finds them; nothing was written"):
        prove_graph(model, wrong, pictures())


def test_soft_nodes_are_calibrated_on_the_pictures_themselves(model: onnx.ModelProto, graph: ExplanatoryGraph) -> None:
    shown = random_pictures(60)
    explained = calibrate(attach_graph(model, graph, form="soft"), shown)
    from analyzers.pixels import to_model_input

    answer = run(explained, to_model_input(shown.decoded(SIZE, SIZE)))
    for layer in manifest_of(explained).explanatory_graph.layers:
        assert answer[layer.percentile].min() == pytest.approx(0, abs=1e-3)
        assert answer[layer.percentile].max() == pytest.approx(100, abs=1e-3)
        assert abs(np.median(answer[layer.percentile]) - 50) < 5
    assert manifest_of(explained).explanatory_graph.form == "soft"


def test_the_command_attaches_to_plain_and_explained_files(
    graph: ExplanatoryGraph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, pack, file = tmp_path / "plain.onnx", tmp_path / "pack.npz", tmp_path / "graph.npz"
    plain.write_bytes(tiny_plain())
    random_pictures(60).save(pack)
    save_graph(graph, file)
    data, both, later = [f"--data={pack}", "--k1=3", "--k2=3"], tmp_path / "both.onnx", tmp_path / "later.onnx"
    assert main(["attach", str(plain), *data, f"--output={tmp_path / 'features.onnx'}"]) == 0
    assert main(["attach", str(tmp_path / "features.onnx"), f"--graph={file}", f"--output={later}"]) == 0
    assert main(["attach", str(plain), *data, f"--graph={file}", f"--output={both}"]) == 0
    assert "where numpy finds them" in capsys.readouterr().out
    files = [onnx.load(path) for path in (later, both)]
    baselines = [Baseline.from_metadata({e.key: e.value for e in file.metadata_props}) for file in files]
    assert [baseline.nodes is None for baseline in baselines] == [True, False]  # no pictures, no percentiles of theirs
    for file in files:
        forget(file)
    assert files[0].SerializeToString(deterministic=True) == files[1].SerializeToString(deterministic=True)
    assert main(["evaluate", str(both), f"--data={pack}", f"--report={tmp_path / 'r.json'}"]) == 0
    assert "explanatory_graph" in (tmp_path / "r.json").read_text()
    assert main(["inspect", str(both)]) == 0
    assert "explanatory_graph" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "has no explanations yet; give labelled pictures with --data"),
        (["--graph={folder}/none.npz"], "there is no graph file"),
        (["--graph={folder}/graph.npz"], "has no explanations yet; give labelled pictures with --data"),
    ],
)
def test_a_wrong_command_ends_in_a_sentence_and_writes_nothing(
    graph: ExplanatoryGraph, tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.onnx").write_bytes(tiny_plain())
    save_graph(graph, tmp_path / "graph.npz")
    command = ["attach", str(tmp_path / "plain.onnx"), f"--output={tmp_path / 'out.onnx'}"]
    assert main(command + [option.format(folder=tmp_path) for option in options]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


def test_soft_without_pictures_ends_in_a_sentence(
    model: onnx.ModelProto, graph: ExplanatoryGraph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    save_graph(graph, tmp_path / "graph.npz")
    files = [str(tmp_path / "model.onnx"), f"--graph={tmp_path / 'graph.npz'}", f"--output={tmp_path / 'out.onnx'}"]
    assert main(["attach", *files, "--graph-form=soft"]) == 1
    assert "give --data to calibrate them on" in capsys.readouterr().err


def test_the_fingerprint_is_that_of_the_maps(model: onnx.ModelProto, graph: ExplanatoryGraph) -> None:
    tensors = [layer.tensor for layer in graph.layers]
    assert maps_fingerprint(attach_graph(model, graph), tensors) == graph.model
    assert Manifest.from_metadata({e.key: e.value for e in model.metadata_props}).parts.filters == FILTERS
