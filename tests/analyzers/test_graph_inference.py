"""The explanatory graph inside an ONNX model against numpy and against literal loops, for random graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from analyzers.errors import ModelError
from analyzers.explanatory_graph import LOG_EPS, ExplanatoryGraph
from analyzers.graph_inference import append_inference
from analyzers.graph_look import Looked, look, places
from analyzers.graph_prune import best_nodes, prune
from analyzers.manifest import ExplanatoryGraph as Section
from analyzers.runtime import open_session
from tests.analyzers.test_graph_file import random_graph

SIZE = (30, 28)
PICTURES = 6


def planted(
    seed: int, *, classes: tuple[str, ...] = (), rooted: bool = True, mirrored: bool = True
) -> ExplanatoryGraph:
    """A random graph whose spreads are what its parents say, with a table of displacements, some padding and floors."""
    random = np.random.default_rng(seed)
    graph = random_graph(classes=classes, rooted=rooted)
    layers = []
    for place, layer in enumerate(graph.layers):
        shape = layer.filter.shape
        layer = replace(
            layer,
            filter=np.where(layer.filter < 0, -1, random.integers(0, 4, shape)),
            prior=random.random((*shape, 2), np.float32),
            mean=random.random((*shape, 2), np.float32),
            sigma=(0.1 + 0.3 * random.random(shape)).astype(np.float32),
            spread=(0.1 + 0.3 * random.random(shape)).astype(np.float32),
            floor=random.random(4, np.float32) * (place == 1),
            threshold=random.normal(-2, 2, shape).astype(np.float32),
            quantiles=np.sort(random.normal(-2, 3, (*shape, 21)), 2).astype(np.float32),
            rank=random.random(shape, np.float32),
        )
        if place:
            parents = layer.parents.copy()
            parents[:, 3, 1:] = -1
            layer = replace(layer, parents=parents)
        layers.append(layer)
    root = graph.root
    if root is not None:
        axes = np.meshgrid([-0.2, 0, 0.25], [-0.15, 0, 0.2, 0.3], indexing="ij")
        nodes = root.nodes.copy()
        nodes[:, -1] = -1
        table = np.stack(axes, -1).reshape(-1, 2).astype(np.float32)
        root = replace(root, displacements=table, mirrored=mirrored, nodes=nodes)
    return replace(graph, layers=tuple(layers), root=root)


def maps_of(graph: ExplanatoryGraph, seed: int, dead: str = "") -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    maps = {
        layer.tensor: np.maximum(random.normal(0, 1, (PICTURES, 4, *layer.grid.cells)), 0).astype(np.float32)
        for layer in graph.layers
    }
    maps[graph.layers[0].tensor][:, 1] = 0
    if dead:
        maps[dead][:] = 0
    return maps


def run(
    graph: ExplanatoryGraph, maps: dict[str, np.ndarray], *, form: str = "hard", whose: np.ndarray | None = None
) -> tuple[Section, dict[str, np.ndarray]]:
    """Compute the graph from maps that are inputs of the model."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *values.shape[1:]])
        for name, values in maps.items()
    ]
    inputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2]))
    model = helper.make_model(helper.make_graph([], "maps", inputs, []), opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    numbers = [[np.arange(layer.filter.shape[1])] * len(layer.filter) for layer in graph.layers]
    section = append_inference(model, graph, numbers, "logits", SIZE, form)
    onnx.checker.check_model(model, full_check=True)
    count = len(next(iter(maps.values())))
    logits = np.eye(2, dtype=np.float32)[np.zeros(count, int) if whose is None else whose]
    return section, open_session(model.SerializeToString()).run({**maps, "logits": logits})


CASES = [
    {"rooted": False},
    {"mirrored": False},
    {},
    {"classes": ("cat", "dog")},
    {"classes": ("cat", "dog"), "rooted": False},
]


def found_in_numpy(graph: ExplanatoryGraph, maps: dict[str, np.ndarray], whose: np.ndarray) -> list[Looked]:
    """`look`, picture by picture with the picture's own graph."""
    each = [
        look(graph, {name: values[i : i + 1] for name, values in maps.items()}, SIZE, number=int(whose[i]))
        for i in range(PICTURES)
    ]
    join = {
        name: [np.concatenate([getattr(one[k], name) for one in each]) for k in range(2)] for name in Looked.__slots__
    }
    return [Looked(**{name: values[k] for name, values in join.items()}) for k in range(2)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dead", ["", "relu7", "relu14"])
def test_nodes_are_where_numpy_finds_them(case: dict, seed: int, dead: str) -> None:
    graph = planted(seed, **case)
    dead = graph.layers[("relu7", "relu14").index(dead)].tensor if dead else ""
    maps, whose = maps_of(graph, seed, dead), np.arange(PICTURES) % 2 if graph.classes else np.zeros(PICTURES, int)
    section, answer = run(graph, maps, whose=whose)
    expected = found_in_numpy(graph, maps, whose)
    for described, layer, truth in zip(section.layers, graph.layers, expected, strict=True):
        real = layer.filter[whose] >= 0
        np.testing.assert_allclose(answer[described.position][real], truth.position[real], atol=1e-6)
        np.testing.assert_allclose(answer[described.score][real], truth.score[real], atol=1e-4)
        assert np.isfinite(answer[described.position]).all()
        assert np.isfinite(answer[described.score]).all()
    if graph.classes:
        assert answer[section.graph].tolist() == whose.tolist()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("form", ["hard", "soft"])
def test_presence_and_percentiles_are_those_of_literal_loops(case: dict, form: str) -> None:
    graph = planted(4, **case)
    maps, whose = maps_of(graph, 4), np.arange(PICTURES) % 2 if graph.classes else np.zeros(PICTURES, int)
    section, answer = run(graph, maps, form=form, whose=whose)
    seen = set()
    for described, layer in zip(section.layers, graph.layers, strict=True):
        rows, columns = places(layer, SIZE)
        for i, g in enumerate(whose):
            score, position = answer[described.score][i], answer[described.position][i].astype(np.float64)
            for node, filter_ in enumerate(layer.filter[g]):
                if filter_ < 0:
                    assert not answer[described.present][i, node]
                    continue
                f = maps[layer.tensor][i, filter_] / layer.scale[filter_] - layer.floor[filter_]
                row, column = abs(rows - position[node, 0]).argmin(), abs(columns - position[node, 1]).argmin()
                fires = f[row, column] > LOG_EPS if form == "hard" else f.max() > LOG_EPS
                assert answer[described.present][i, node] == (fires and score[node] >= layer.threshold[g, node])
                seen.add((bool(fires), bool(score[node] >= layer.threshold[g, node])))
                percentile = np.interp(score[node], layer.quantiles[g, node], np.linspace(0, 100, 21))
                assert answer[described.percentile][i, node] == pytest.approx(percentile, abs=1e-3)
    assert len(seen) >= 3  # each reason to be absent occurs


@pytest.mark.parametrize("case", CASES, ids=str)
def test_soft_nodes_are_moments_over_all_cells(case: dict) -> None:
    """Layer by layer in float64, the parents' places taken from the layer above as the model found them."""
    graph = planted(5, **case)
    maps, whose = maps_of(graph, 5), np.arange(PICTURES) % 2 if graph.classes else np.zeros(PICTURES, int)
    section, answer = run(graph, maps, form="soft", whose=whose)
    mirrored = answer[section.mirrored] if section.mirrored else np.zeros(PICTURES, bool)
    root = answer[section.displacement] if section.displacement else np.zeros((PICTURES, 2))
    for i, g in enumerate(whose):
        away: np.ndarray | None = None
        for described, layer in zip(section.layers, graph.layers, strict=True):
            rows, columns = places(layer, SIZE)
            columns = 1 - columns if mirrored[i] else columns
            real = layer.filter[g] >= 0
            now = np.zeros((len(real), 2))
            for node in np.flatnonzero(real):
                prior, spread = layer.prior[g, node].astype(np.float64), float(layer.spread[g, node])
                if away is None:
                    centre, log_scale = prior + root[i], -np.log(2 * np.pi * spread**2)
                else:
                    parents = [p for p in layer.parents[g, node] if p >= 0]
                    sigma = graph.layers[0].sigma[g, parents].astype(np.float64)
                    weight = 1 / (len(parents) * sigma**2)
                    shift = spread**2 * (weight[:, None] * away[parents]).sum(0)
                    apart = (weight * (away[parents] ** 2).sum(1)).sum() - (shift**2).sum() / spread**2
                    centre = prior + shift
                    log_scale = -np.log(2 * np.pi) - np.log(sigma**2).mean() - max(apart, 0) / 2
                f = maps[layer.tensor][i, layer.filter[g, node]].astype(np.float64)
                f = np.maximum(f / layer.scale[layer.filter[g, node]] - layer.floor[layer.filter[g, node]], 0)
                mass, total = LOG_EPS * centre, LOG_EPS
                for h, w in np.ndindex(f.shape):
                    x = np.array([rows[h], columns[w]])
                    share = f[h, w] * np.exp(-((x - centre) ** 2).sum() / (2 * spread**2))
                    mass, total = mass + share * x, total + share
                place = mass / total
                now[node] = place - layer.mean[g, node]
                place = np.array([place[0], 1 - place[1]]) if mirrored[i] else place
                np.testing.assert_allclose(answer[described.position][i, node], place, atol=1e-4)
                assert answer[described.score][i, node] == pytest.approx(np.log(total) + log_scale, abs=1e-3)
            away = now


def test_what_is_left_of_a_pruned_graph_is_where_it_was() -> None:
    graph = planted(6, classes=("cat", "dog"))
    maps, whose = maps_of(graph, 6), np.arange(PICTURES) % 2
    small, kept = prune(graph, [best_nodes(layer, 3) for layer in graph.layers])
    whole_section, whole = run(graph, maps, whose=whose)
    section, part = run(small, maps, whose=whose)
    for place, (described, before) in enumerate(zip(section.layers, whole_section.layers, strict=True)):
        for i, g in enumerate(whose):
            nodes = kept[place][g]
            for name, near in (("position", 0), ("score", 1e-6), ("percentile", 1e-3)):
                one, other = whole[getattr(before, name)][i, nodes], part[getattr(described, name)][i, : len(nodes)]
                np.testing.assert_allclose(one, other, rtol=0, atol=near)


@pytest.mark.parametrize("form", ["hard", "soft"])
def test_a_picture_has_the_same_nodes_alone_and_in_a_batch(form: str) -> None:
    graph = planted(7, classes=("cat", "dog"))
    maps, whose = maps_of(graph, 7), np.arange(PICTURES) % 2
    _, batch = run(graph, maps, form=form, whose=whose)
    for i in range(PICTURES):
        _, alone = run(
            graph, {name: values[i : i + 1] for name, values in maps.items()}, form=form, whose=whose[i : i + 1]
        )
        for name, values in alone.items():
            np.testing.assert_array_equal(values[0], batch[name][i])


def test_displacements_that_are_no_table_are_refused() -> None:
    graph = planted(8)
    odd = graph.root.displacements.copy()
    odd[5, 0] += 0.01
    with pytest.raises(ModelError, match="no table of rows and columns; learn the graph anew"):
        run(replace(graph, root=replace(graph.root, displacements=odd)), maps_of(graph, 8))
