"""Baselines: small histograms in the model file, and how far two histograms are apart."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path

import numpy as np
import onnx
import pytest

from analyzers.__main__ import main as analyze
from analyzers.attach_graph import attach_graph, without_graph
from analyzers.baseline import BASELINE_KEY, MAX_BYTES, Baseline, Columns, divergence, gathered, numbers_of, shift
from analyzers.baseline_command import record_baseline
from analyzers.errors import DataError, ModelError
from analyzers.manifest import Manifest
from analyzers.plain import manifest_of
from server.load import load_model
from tests.conftest import NAMES, explain_tiny, random_pictures, tiny_graph


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def loop_divergence(first: list[int], second: list[int]) -> float:
    """Jensen-Shannon divergence as its definition says."""
    total = 0.0
    for a, b in zip(first, second, strict=True):
        p, q = a / sum(first), b / sum(second)
        for share in (p, q):
            if share:
                total += share * log2(share / ((p + q) / 2)) / 2
    return total


def test_the_divergence_is_that_of_its_definition_0_for_equal_shares_1_for_strangers() -> None:
    random = np.random.default_rng(3)
    first, second = random.integers(0, 9, (20, 6)) + np.eye(6, dtype=np.int64)[0], random.integers(0, 9, (20, 6)) + 1
    found = divergence(first, second)
    assert found == pytest.approx([loop_divergence(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)])
    assert divergence(np.array([[1, 3]]), np.array([[2, 6]]))[0] == pytest.approx(0)
    assert divergence(np.array([[4, 0]]), np.array([[0, 1]]))[0] == pytest.approx(1)


def test_what_chance_shows_is_what_samples_of_one_distribution_show() -> None:
    random, shares = np.random.default_rng(8), np.array([0.5, 0.3, 0.15, 0.05])
    pairs = [(random.multinomial(2000, shares, 400), random.multinomial(300, shares, 400)) for _ in range(2)]
    truth = np.mean([divergence(*pair).mean() for pair in pairs])
    assert truth == pytest.approx(3 / 8 / np.log(2) * (1 / 2000 + 1 / 300), rel=0.1)  # Taylor's first term
    assert shift(*pairs[0]).by_chance == pytest.approx(truth, rel=0.15)
    assert shift(*pairs[0]).found == pytest.approx(truth, rel=0.15)
    assert shift(pairs[0][0], pairs[0][1][:, ::-1]).found > 50 * truth


def test_bins_hold_equal_shares_and_ties_lie_below_the_edge() -> None:
    values = np.array([[0, 1], [0, 2], [0, 3], [7, 4], [9, 5]], np.float32)
    columns = Columns.of(values, 5)
    counts = columns.counts(5)
    assert counts.sum(1).tolist() == [5, 5]
    assert counts[1].tolist() == [1, 1, 1, 1, 1]
    assert counts[0].tolist() == [3, 0, 0, 1, 1]


def test_the_margin_is_the_best_logit_minus_the_next_and_one_class_has_its_logit() -> None:
    found = numbers_of("scores", np.array([[1, 5, 3], [2, 0, -1]], np.float32))
    assert found["classes"].tolist() == [[1], [0]]
    assert found["confidence"].tolist() == [[2], [2]]
    assert numbers_of("scores", np.array([[1.5], [-2]], np.float32))["confidence"].tolist() == [[1.5], [-2]]


def test_very_many_features_are_thinned_and_a_source_that_lacks_a_tensor_is_left_out() -> None:
    wide = {"a": np.zeros((2, 5000), np.float32)}
    assert gathered(wide, "features", ("a",)).shape == (2, 1667)
    assert gathered(wide, "scores", ("a",)).shape == (2, 5000)
    assert gathered(wide, "nodes", ("a", "b")) is None


def test_attaching_writes_a_small_baseline_of_the_pictures_that_it_was_fitted_on(tmp_path: Path) -> None:
    plain, pack, output = tmp_path / "plain.onnx", tmp_path / "pictures.npz", tmp_path / "explained.onnx"
    plain.write_bytes(onnx.ModelProto.SerializeToString(explain_tiny()[0].model))
    random_pictures().save(pack)
    assert analyze(f"attach {plain} --data {pack} --k1 3 --k2 3 --output {output}".split()) == 0
    model = onnx.load(output)
    baseline = Baseline.from_metadata(metadata(model))
    assert baseline.pictures == 20  # the train split
    assert {what: counts.sum(1).tolist() for what, counts in baseline.histograms().items()} == {
        "classes": [20],
        "confidence": [20],
        "features": [20] * 8,
    }
    assert Manifest.from_metadata(metadata(model)).schema_version == 2
    assert len(metadata(model)[BASELINE_KEY]) < 2000
    anew = tmp_path / "anew.onnx"
    assert analyze(f"baseline {output} --data {pack} --output {anew}".split()) == 0
    assert Baseline.from_metadata(metadata(onnx.load(anew))).pictures == 30
    load_model(anew, "tiny", "1", device="cpu", threads=1, drift=True)


def test_a_graph_brings_its_nodes_and_takes_them_along_when_it_goes() -> None:
    model = attach_graph(explain_tiny()[2], tiny_graph(explain_tiny()[2]))
    baseline = record_baseline(model, random_pictures())
    nodes = [len(layer.node[0]) for layer in manifest_of(model).explanatory_graph.layers]
    assert baseline.histograms()["nodes"].shape == (sum(nodes), 5)
    left = Baseline.from_metadata(metadata(without_graph(model)))
    assert left.nodes is None
    assert left.features == baseline.features


def test_attaching_anew_forgets_a_baseline_that_was_of_other_explanations() -> None:
    plain, selection, model = explain_tiny()
    record_baseline(model, random_pictures())
    plain.model.metadata_props.extend(model.metadata_props)
    from analyzers.attach import attach

    assert BASELINE_KEY not in metadata(attach(plain, selection))


def with_baseline(text: str) -> bytes:
    model = explain_tiny()[2]
    model.metadata_props.add(key=BASELINE_KEY, value=text)
    return model.SerializeToString()


def spoilt(**changes: object) -> str:
    model = explain_tiny()[2]
    record_baseline(model, random_pictures())
    return json.dumps(json.loads(metadata(model)[BASELINE_KEY]) | changes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "the baseline is wrong at the whole"),
        ("[" * 100_000, "the baseline is wrong at the whole"),
        (" " * (MAX_BYTES + 1), "at most 4194304 are read"),
        (spoilt(schema=2), "the baseline is wrong at schema"),
        (spoilt(classes=[30]), "the baseline has 1 classes, the model 3"),
        (spoilt(classes=[30, 30, 30]), "classes add up to 90, there were 30 pictures"),
        (spoilt(confidence={"edges": [[2, 1]], "above": [[1, 1]]}), "edges must ascend"),
        (spoilt(confidence={"edges": [[1, 2]], "above": [[1, 2]]}), "above must descend"),
        (spoilt(confidence={"edges": [[1, 2]], "above": [[31, 2]]}), "more than 30 pictures"),
        (spoilt(confidence={"edges": [[1]], "above": [[1], [1]]}), "tables of the same size"),
        (spoilt(features={"edges": [[1]], "above": [[1]]}), "the baseline has 1 features, the model 8"),
        (spoilt(nodes={"edges": [[1]], "above": [[1]]}), "the baseline has 1 nodes, the model 0"),
    ],
)
def test_a_damaged_baseline_or_that_of_another_model_is_refused_with_a_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(with_baseline(text))
    with pytest.raises(ModelError, match=sentence):
        load_model(tmp_path / "model.onnx", "tiny", "1", device="cpu", threads=1)


def test_without_pictures_or_with_numbers_that_are_none_there_is_no_baseline() -> None:
    known = manifest_of(explain_tiny()[2])
    with pytest.raises(DataError, match="no picture"):
        Baseline.of(known, [])
    with pytest.raises(DataError, match="not finite"):
        Baseline.of(known, [{known.scores.tensor: np.full((2, len(NAMES)), np.nan, np.float32)}])
