"""The file of an explanatory graph: what goes in comes out, and what is not one is refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from analyzers.__main__ import main
from analyzers.errors import DataError
from analyzers.explanatory_graph import QUANTILES, ExplanatoryGraph, GraphLayer, Root
from analyzers.graph_file import load_graph, save_graph
from analyzers.manifest import Grid


def random_layer(
    random: np.random.Generator, above: int, *, graphs: int = 1, nodes: int = 12, cells: int = 7
) -> GraphLayer:
    """A layer of random numbers; the last node pads."""
    number = random.integers(0, 4, (graphs, nodes))
    number[:, -1] = -1
    shape = (graphs, nodes)

    def floats(*more: int) -> np.ndarray:
        return random.random((*shape, *more), np.float32) + np.float32(0.01)

    return GraphLayer(
        tensor=f"relu{cells}",
        grid=Grid(cells=(cells, cells), stride=(4.0, 4.0), offset=(2.0, 2.0), receptive_field=(9.0, 9.0)),
        scale=np.full(4, 0.5, np.float32),
        floor=np.zeros(4, np.float32),
        filter=number,
        prior=floats(2),
        mean=floats(2),
        sigma=floats(),
        spread=floats(),
        parents=random.integers(0, above - 1, (*shape, 3)) if above else np.zeros((*shape, 0), np.int64),
        threshold=-floats(),
        quantiles=floats(QUANTILES),
        rank=floats(),
        top_picture=random.integers(0, 9, (*shape, 5)),
        top_score=floats(5),
        top_position=floats(5, 2),
    )


def random_graph(*, classes: tuple[str, ...] = (), rooted: bool = True) -> ExplanatoryGraph:
    random = np.random.default_rng(3)
    graphs = max(1, len(classes))
    top = random_layer(random, 0, graphs=graphs)
    root = Root(
        nodes=np.tile(np.arange(4), (graphs, 1)),
        displacements=random.random((9, 2), np.float32),
        mean=random.random((graphs, 2), np.float32),
        sigma=0.06,
        mirrored=True,
    )
    return ExplanatoryGraph(
        layers=(top, random_layer(random, 12, graphs=graphs, nodes=20, cells=14)),
        root=root if rooted else None,
        classes=classes,
        model="ab" * 32,
        data="cd" * 32,
        pictures=9,
        settings={"iterations": 8, "tau": 0.1},
    )


def rewrite(path: Path, **changes: np.ndarray | None) -> None:
    """Change or remove (None) arrays of a file, as a hand or another version would; `.` is written `__`."""
    with np.load(path) as pack:
        arrays = dict(pack)
    for name, array in changes.items():
        arrays.pop(name.replace("__", "."))
        if array is not None:
            arrays[name.replace("__", ".")] = array
    np.savez(path, **arrays)


def changed_manifest(path: Path, **changes: object) -> np.ndarray:
    with np.load(path) as pack:
        document = json.loads(pack["manifest"].tobytes())
    return np.frombuffer(json.dumps(document | changes).encode(), np.uint8)


@pytest.mark.parametrize(("classes", "rooted"), [((), True), (("cat", "dog"), True), ((), False)])
def test_a_graph_comes_back_as_it_was(tmp_path: Path, classes: tuple[str, ...], rooted: bool) -> None:
    graph = random_graph(classes=classes, rooted=rooted)
    save_graph(graph, tmp_path / "graph.npz")
    again = load_graph(tmp_path / "graph.npz")
    for name in ("classes", "model", "data", "pictures", "settings"):
        assert getattr(again, name) == getattr(graph, name)
    pairs = list(zip(graph.layers, again.layers, strict=True)) + ([(graph.root, again.root)] if rooted else [])
    for one, other in pairs:
        for field in fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), strict=True)
    assert (again.root is None) != rooted


def test_equal_graphs_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.npz", "two.npz"):
        save_graph(random_graph(), tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_a_file_that_is_no_graph_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    with pytest.raises(DataError, match="there is no graph file"):
        load_graph(path)
    path.write_bytes(b"PK\x03\x04 but no zip")
    with pytest.raises(DataError, match="not a graph file, or a damaged one"):
        load_graph(path)
    np.savez(path, image=np.zeros(3))
    with pytest.raises(DataError, match="holds no explanatory graph"):
        load_graph(path)
    np.savez(path, manifest=np.array([{"format": "pellucid.explanatory_graph"}], object))
    with pytest.raises(DataError, match="not a graph file"):  # never unpickled
        load_graph(path)
    save_graph(random_graph(), path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="not a graph file, or a damaged one"):
        load_graph(path)


def test_a_schema_from_the_future_is_named(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    save_graph(random_graph(), path)
    rewrite(path, manifest=changed_manifest(path, schema=2, more="things"))
    with pytest.raises(DataError, match="has schema 2, this version reads schema 1"):
        load_graph(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer1__prior": None}, "layer1.prior is missing"),
        ({"layer0__filter": np.full((1, 12), 4)}, "a filter that is not there"),
        ({"layer1__parents": np.full((1, 20, 3), 12)}, "a node that is not there"),
        ({"layer1__parents": np.full((1, 20, 3), 11)}, "a node that only pads"),
        ({"layer0__prior": np.zeros((1, 12, 3), np.float32)}, r"layer0.prior has shape \[1, 12, 3\]"),
        ({"layer0__prior": np.zeros((1, 12), np.float32)}, r"layer0.prior is float32 \[1, 12\]"),
        ({"layer0__rank": np.full((1, 12), np.nan, np.float32)}, "not finite"),
        ({"layer0__spread": np.zeros((1, 12), np.float32)}, "not above 0"),
        ({"root__nodes": np.full((1, 4), 11)}, "only pads"),
        ({"layer0__filter": np.zeros((1, 12), np.float32)}, "layer0.filter is float32"),
    ],
)
def test_damage_inside_is_found_before_anybody_counts_on_it(
    tmp_path: Path, changes: dict[str, np.ndarray | None], words: str
) -> None:
    path = tmp_path / "graph.npz"
    save_graph(random_graph(), path)
    rewrite(path, **changes)
    with pytest.raises(DataError, match=words):
        load_graph(path)


def test_inspect_prints_layers_parents_and_the_best_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, graph = tmp_path / "graph.npz", random_graph(classes=("cat", "dog"))
    rank = graph.layers[1].rank.copy()
    rank[1, 6] = 9
    rank[0, -1] = 10  # pads, so it is nobody's best
    save_graph(replace(graph, layers=(graph.layers[0], replace(graph.layers[1], rank=rank))), path)
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "relu14: 14 x 14 cells, 4 filters, 38 nodes, 3 parents each\n  node 6 of dog: filter" in printed
    assert main(["inspect", str(path), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["layers"][1]["best"][0]["class"] == "dog"
    assert about["layers"][0]["parents"] == 0
    assert main(["inspect", str(tmp_path / "none.npz")]) == 1
    assert "there is no graph file" in capsys.readouterr().err
