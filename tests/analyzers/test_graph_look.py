"""Looking for nodes in numpy, against literal loops, node by node and picture by picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analyzers.explanatory_graph import ExplanatoryGraph
from analyzers.graph_look import activation, look, places, root_of
from analyzers.graph_prune import best_nodes, prune
from tests import graph_oracles as oracles
from tests.analyzers.test_graph_file import random_graph

SIZE = (30, 28)


@pytest.fixture
def graph() -> ExplanatoryGraph:
    """Two graphs of two layers; one filter is dead, one node pads, one node has fewer parents."""
    graph = random_graph(classes=("cat", "dog"))
    low = graph.layers[1]
    parents = low.parents.copy()
    parents[:, 3, 1:] = -1
    spread = np.ones_like(low.spread)
    for number, node in np.ndindex(spread.shape):
        real = parents[number, node][parents[number, node] >= 0]
        spread[number, node] = (1 / graph.layers[0].sigma[number, real].astype(np.float64) ** 2).mean() ** -0.5
    places = np.stack(np.meshgrid([-0.2, 0, 0.2], [-0.2, 0, 0.2], indexing="ij"), -1).reshape(-1, 2)
    root = replace(graph.root, displacements=places.astype(np.float32))
    return replace(graph, layers=(graph.layers[0], replace(low, parents=parents, spread=spread)), root=root)


@pytest.fixture
def maps(graph: ExplanatoryGraph) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    maps = {
        layer.tensor: np.maximum(random.normal(0, 1, (4, 4, *layer.grid.cells)), 0).astype(np.float32)
        for layer in graph.layers
    }
    maps["relu7"][:, 1] = 0
    return maps


@pytest.mark.parametrize("number", [0, 1])
def test_positions_and_scores_are_those_of_literal_loops(
    graph: ExplanatoryGraph, maps: dict[str, np.ndarray], number: int
) -> None:
    root, mirrored = root_of(graph.root, graph.layers[0], maps, SIZE, number)
    assert 0 < mirrored.sum() < 4  # both kinds are tried here
    found = look(graph, maps, SIZE, number=number)
    above: np.ndarray | None = None
    for place, layer in enumerate(graph.layers):
        rows, columns = places(layer, SIZE)
        away = np.zeros((4, layer.filter.shape[1], 2))
        for i in range(4):
            taken = 1 - columns if mirrored[i] else columns
            for node, d in enumerate(layer.filter[number]):
                if d < 0:
                    assert found[place].cell[i, node] == -1
                    continue
                prior = layer.prior[number, node].astype(np.float64)
                parents = [p for p in layer.parents[number, node] if p >= 0]
                if above is None:
                    spread = float(layer.spread[number, node])
                    centre, scale = prior + root[i] - graph.root.mean[number], -np.log(2 * np.pi * spread**2)
                else:
                    sigma = graph.layers[place - 1].sigma[number, parents].astype(np.float64)
                    centre, scale, spread = oracles.from_parents(prior, above[i, parents], sigma)
                f = activation(layer, maps, int(d))[i]
                cell, score = oracles.best_cell(f, rows, taken, centre, scale, spread)
                assert found[place].cell[i, node] == cell
                assert found[place].score[i, node] == pytest.approx(score, abs=1e-5)
                h, w = divmod(int(found[place].cell[i, node]), len(columns))
                away[i, node] = np.array([rows[h], taken[w]]) - layer.mean[number, node]
                np.testing.assert_allclose(found[place].position[i, node], [rows[h], columns[w]])
        above = away


def test_a_pruned_graph_finds_what_the_whole_one_does_bit_by_bit(
    graph: ExplanatoryGraph, maps: dict[str, np.ndarray]
) -> None:
    wanted = [best_nodes(layer, 3) for layer in graph.layers]
    small, kept = prune(graph, wanted)
    assert small.layers[1].filter.shape[1] == 3
    assert small.layers[0].filter.shape[1] < graph.layers[0].filter.shape[1]
    for number in (0, 1):
        whole, part = (look(one, maps, SIZE, number=number) for one in (graph, small))
        for place in (0, 1):
            nodes = kept[place][number]
            assert set(wanted[place][number]) <= set(nodes)
            for name in ("cell", "score", "position"):
                one, other = getattr(whole[place], name)[:, nodes], getattr(part[place], name)[:, : len(nodes)]
                np.testing.assert_array_equal(one, other)


def test_shuffled_parents_are_those_of_another_picture(graph: ExplanatoryGraph, maps: dict[str, np.ndarray]) -> None:
    """Pictures that are all alike cannot be told from their shuffled selves; others can."""
    alike = {name: np.repeat(values[:1], 4, 0) for name, values in maps.items()}
    for shown, equal in ((alike, True), (maps, False)):
        one, other = (look(graph, shown, SIZE, shuffled=shuffled)[1].score for shuffled in (False, True))
        assert np.array_equal(one, other) == equal
