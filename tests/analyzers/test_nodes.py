"""Nodes in an answer: which are in it, in which order, where, and under which of the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from analyzers.errors import InvalidInputError
from analyzers.explain import Wanted
from analyzers.explanation import Explanation, ExplanatoryGraph, Node, Prediction
from analyzers.geometry import Frame
from analyzers.ledger import render
from analyzers.manifest import ExplanatoryGraph as Section
from analyzers.manifest import GraphLayer, Grid
from analyzers.nodes import decode

GRID = Grid(cells=(4, 4), stride=(4, 4), offset=(2, 2), receptive_field=(9, 9))
FRAME = Frame(2.0, 1.0, 200, 100)
CLASSES = ("cat", "dog")


def layer(place: int, **tables: object) -> GraphLayer:
    names = {name: f"explanatory_graph.{place}.{name}" for name in ("position", "score", "percentile", "present")}
    return GraphLayer(layer=f"conv{place}", grid=GRID, **names, **tables)


TOP = layer(0, node=((40, 41, 42), (50, 51, -1)), filter=((3, 3, 5), (6, 7, -1)), parents=(((), (), ()), ((), (), ())))
LOW = layer(1, node=((8, 9), (10, 11)), filter=((0, 1), (0, 2)), parents=(((0, 2), (1,)), ((0, 1), (0, 1))))
SECTION = Section(
    layers=(TOP, LOW),
    form="hard",
    graph="explanatory_graph.graph",
    displacement="explanatory_graph.displacement",
    mirrored="explanatory_graph.mirrored",
)
OUTPUTS: Mapping[str, np.ndarray] = {
    "explanatory_graph.graph": np.array([0, 1]),
    "explanatory_graph.displacement": np.array([[0.1, -0.2], [0.0, 0.0]], np.float32),
    "explanatory_graph.mirrored": np.array([True, False]),
    "explanatory_graph.0.position": np.array([[[0.25, 0.5], [0.5, 0.75], [0.5, 1.25]]] * 2, np.float32),
    "explanatory_graph.0.score": np.array([[-1, -2, -3]] * 2, np.float32),
    "explanatory_graph.0.percentile": np.array([[20, 60, 60]] * 2, np.float32),
    "explanatory_graph.0.present": np.array([[True, True, True]] * 2),
    "explanatory_graph.1.position": np.array([[[0, 0], [1, 1]]] * 2, np.float32),
    "explanatory_graph.1.score": np.array([[-1, -2]] * 2, np.float32),
    "explanatory_graph.1.percentile": np.array([[30, 10]] * 2, np.float32),
    "explanatory_graph.1.present": np.array([[True, False], [True, True]]),
}


def answer(row: int = 0, min_percentile: float = 0, max_nodes: int = 20) -> ExplanatoryGraph:
    return decode(SECTION, CLASSES, OUTPUTS, row, FRAME, min_percentile=min_percentile, max_nodes=max_nodes)


def test_present_nodes_are_listed_by_layer_and_percentile_with_pixels_and_edges() -> None:
    graph = answer()
    assert graph.nodes == (
        Node(0, 41, 3, 150.0, 50.0, -2.0, 60.0),
        Node(0, 42, 5, 200.0, 50.0, -3.0, 60.0),  # moments may lie outside; positions are in the picture
        Node(0, 40, 3, 100.0, 25.0, -1.0, 20.0),
        Node(1, 8, 0, 0.0, 0.0, -1.0, 30.0, (40, 42)),
    )
    assert (graph.layers, graph.class_name, graph.mirrored) == (("conv0", "conv1"), "cat", True)
    assert (graph.right, graph.down) == pytest.approx((-40.0, 10.0))


def test_another_picture_has_the_graph_of_its_own_class_without_what_pads() -> None:
    graph = answer(row=1)
    assert [(node.layer, node.node, node.parents) for node in graph.nodes] == [
        (0, 51, ()),
        (0, 50, ()),
        (1, 10, (50, 51)),
        (1, 11, (50, 51)),
    ]
    assert graph.class_name == "dog"


def test_what_is_left_out_is_no_parent_either() -> None:
    assert [(node.node, node.parents) for node in answer(min_percentile=25).nodes] == [(41, ()), (42, ()), (8, (42,))]
    assert [(node.node, node.parents) for node in answer(max_nodes=1).nodes] == [(41, ()), (8, ())]
    assert answer(min_percentile=100).nodes == ()


@pytest.mark.parametrize("value", [-1, 101, float("nan")])
def test_a_percentile_is_from_0_to_100(value: float) -> None:
    with pytest.raises(InvalidInputError, match=r"min_percentile: is .*; expected 0 to 100"):
        Wanted(min_percentile=value)
    with pytest.raises(InvalidInputError, match="max_nodes: is -1"):
        Wanted(max_nodes=-1)


def test_the_text_is_a_tree_with_small_patterns_under_their_best_parent() -> None:
    said = render(Explanation((Prediction(0, "cat", 1.0, 0.5),), 200, 100, explanatory_graph=answer()))
    assert said.splitlines() == [
        "cat  50.0%",
        "  explanatory graph of cat: 4 part patterns, mirrored",
        "    layer 0 node 41, filter 3 at (150, 50), percentile 60",
        "    layer 0 node 42, filter 5 at (200, 50), percentile 60",
        "      layer 1 node 8, filter 0 at (0, 0), percentile 30, under 1 more",
        "    layer 0 node 40, filter 3 at (100, 25), percentile 20",
    ]


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"filter": ((0, 1), (0,))}, "node, filter and parents of 'conv1' have different lengths"),
        ({"node": ((8, 9),)}, "node, filter and parents of 'conv1' have different lengths"),
        ({"parents": (((0, 3), ()), ((), ()))}, "nodes of 'conv1' name parents that the layer above has not"),
        ({"parents": (((-1,), ()), ((), ()))}, "nodes of 'conv1' name parents that the layer above has not"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tables: dict[str, object], sentence: str) -> None:
    of_low = {"node": LOW.node, "filter": LOW.filter, "parents": LOW.parents}
    with pytest.raises(ValueError, match=sentence):
        Section(layers=(TOP, layer(1, **(of_low | tables))), form="hard")


def test_of_nodes_of_a_filter_at_one_place_only_the_best_is_there() -> None:
    """Nodes 40 and 41 belong to one filter; half a cell is an eighth of the picture."""
    for apart, expected in ((0.12, [41, 42]), (0.13, [41, 42, 40])):
        near = np.array([[[0.5, 0.5], [0.5, 0.5 + apart], [0.5, 0.5]]] * 2, np.float32)
        score = np.array([[-3, -2, -1]] * 2, np.float32)
        outputs = {**OUTPUTS, "explanatory_graph.0.position": near, "explanatory_graph.0.score": score}
        graph = decode(SECTION, CLASSES, outputs, 0, FRAME, min_percentile=0, max_nodes=20)
        assert [node.node for node in graph.nodes if node.layer == 0] == (
            [42, 41] if 41 in expected else []
        ) + expected[2:]
