"""The figures of a graph that a model file carries, each beside its controls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from analyzers.attach_graph import attach_graph, attached_graph
from analyzers.evaluate import evaluate
from analyzers.graph_evaluate import evaluate_graph
from analyzers.graph_locate import SHOWN, locate
from analyzers.graph_look import look
from analyzers.pictures import PartMarks, Pictures
from analyzers.plain import manifest_of
from tests.conftest import NAMES, SIZE, explain_tiny, random_pictures, tiny_graph


def marked(xy: np.ndarray, count: int) -> Pictures:
    """Pictures of noise, all in the test split, whose parts are at `xy` (pictures, parts, 2)."""
    names = ("head", "tail")[: xy.shape[1]]
    box = np.concatenate((xy - 0.1, xy + 0.1), 2).astype(np.float32)
    return replace(
        random_pictures(count), split=np.ones(count, np.int64), parts=PartMarks(names, xy.astype(np.float32), box)
    )


@pytest.fixture(scope="module")
def explained() -> onnx.ModelProto:
    bare = explain_tiny()[2]
    return attach_graph(bare, tiny_graph(bare, NAMES))


def test_a_report_has_every_figure_with_its_controls(explained: onnx.ModelProto) -> None:
    pictures = marked(np.random.default_rng(0).random((60, 2, 2)), 60)
    report = evaluate(explained.SerializeToString(), pictures)["explanatory_graph"]
    for name in ("location_instability", "tracking_ratio", "purity"):
        assert set(report[name]["controls"]) == {"centre", "raw_peaks", "shuffled_parents", "random"}
        assert np.isfinite([report[name]["value"], report[name]["standard_error"]]).all()
        assert report[name]["n"] == 60
        assert [layer["layer"] for layer in report[name]["layers"]] == ["relu", "relu"]
    assert report["predictive_gain"]["controls"] == {"shuffled_parents": 0.0}
    assert report["predictive_gain"]["n"] == 60
    assert set(report["part_localization"]["controls"]) == {"best_filter", "mean_of_marks"}
    assert set(report["part_localization"]["parts"]) == {"head", "tail"}
    assert report["part_localization"]["n"] == 2 * (60 - 3 * SHOWN)
    assert all(0 <= value <= 1 for value in report["part_localization"]["controls"].values())


def test_without_marks_only_the_gain_is_measured(explained: onnx.ModelProto) -> None:
    graph, known = attached_graph(explained), manifest_of(explained)
    assert set(evaluate_graph(explained, graph, known.input, random_pictures(30))) == {"predictive_gain"}


def test_a_part_that_keeps_its_place_beside_a_node_is_found_and_noise_is_not(explained: onnx.ModelProto) -> None:
    """Marks follow one node of the graph in one case, and nothing in the other."""
    graph, random = attached_graph(explained), np.random.default_rng(1)
    maps = {"relu": np.maximum(random.normal(0, 1, (40, 8, 8, 8)), 0).astype(np.float32)}
    maps["relu"][:, :, 2:6, 2:6] *= 4
    found = look(graph, maps, (SIZE, SIZE), number=0)[1]
    node = int(np.argmax(found.position[:, :, 1].std(0) * (found.cell >= 0).all(0)))
    beside = found.position[:, node, ::-1] + (0.05, -0.05)
    hits = {
        name: locate(graph, maps, marked(xy[:, None], 40), (SIZE, SIZE))[0]
        for name, xy in (("beside", beside), ("noise", random.random((40, 2))))
    }
    near = hits["beside"]  # nearly all nodes vote, of which one is right
    assert near.nodes > 2 * max(near.best_filter, near.mean_of_marks, hits["noise"].nodes)
    assert hits["beside"].pictures == 40 - SHOWN


def test_parts_with_too_few_marks_are_left_out(explained: onnx.ModelProto) -> None:
    xy = np.full((10, 2, 2), np.nan)
    xy[:, 0] = 0.5
    xy[:4, 1] = 0.5
    maps = {"relu": np.ones((10, 8, 8, 8), np.float32)}
    located = locate(attached_graph(explained), maps, marked(xy, 10), (SIZE, SIZE))
    assert list(located) == [0]
    assert located[0].mean_of_marks == 1
