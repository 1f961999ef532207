"""Looking at a graph: the page of its nodes' patches, the drawing over one picture, the heat map of a layer."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analyzers.__main__ import main
from analyzers.errors import DataError
from analyzers.explanation import Explanation, ExplanatoryGraph, Node, Prediction
from analyzers.figure import draw, heat_map
from analyzers.graph_file import save_graph
from analyzers.graph_page import PATCH, graph_page
from tests.analyzers.test_gallery import pictures_on
from tests.analyzers.test_graph_file import random_graph
from tests.conftest import png, random_pictures

NODES = (
    Node(0, 3, 1, 40.0, 30.0, -1.0, 90.0),
    Node(1, 5, 2, 44.0, 34.0, -2.0, 80.0, (3,)),
    Node(1, 6, 2, 10.0, 50.0, -3.0, 70.0),
)
EXPLANATION = Explanation(
    (Prediction(0, "cat", 1.0, 0.5),), 64, 80, explanatory_graph=ExplanatoryGraph(NODES, ("top", "low"), "cat")
)


def test_a_page_shows_the_best_nodes_with_their_patches_and_leads_to_parents() -> None:
    shown = random_pictures(30)
    graph = replace(random_graph(), data=shown.fingerprint())
    page = graph_page(graph, shown, title="<i>graph</i>", nodes=6, patches=4)
    text = page.decode()
    assert "&lt;i&gt;graph&lt;/i&gt;" in text
    anchors = re.findall(r'<section class="card" id="([^"]+)"', text)
    for place, layer in enumerate(graph.layers):
        best = np.argsort(np.where(layer.filter[0] >= 0, -layer.rank[0], np.inf), kind="stable")[:6]
        assert [a for a in anchors if a.startswith(f"{place}-")] == [f"{place}-0-{node}" for node in best]
    links = re.findall(r'href="#([^"]+)"', text)
    assert links
    assert set(links) <= set(anchors)
    assert len(pictures_on(page)) == 4 * len(anchors)


def test_a_patch_is_where_the_node_was_found() -> None:
    """The one bright place of a picture is in the middle of the patch, or at its edge where that is the picture's."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[44:52, 20:28] = 255  # centre at row 0.75, column 0.375
    shown = replace(random_pictures(1), encoded=(png(pixels),))
    graph = random_graph()
    layers = []
    for layer in graph.layers:
        top = np.broadcast_to(np.array([0.75, 0.375], np.float32), layer.top_position.shape)
        layers.append(replace(layer, top_picture=np.zeros_like(layer.top_picture), top_position=top))
    page = graph_page(
        replace(graph, layers=tuple(layers), data=shown.fingerprint()), shown, title="", nodes=1, patches=1
    )
    patch = np.asarray(pictures_on(page)[0].convert("L"), float)
    row, column = (np.indices(patch.shape) * patch).sum((1, 2)) / patch.sum() / patch.shape[0]
    assert (row, column) == pytest.approx((0.5, 0.5), abs=0.03)
    assert (patch > 128).mean() == pytest.approx((8 / 64 / PATCH) ** 2, rel=0.2)


def test_other_pictures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="not the pictures that the graph was learned from"):
        graph_page(random_graph(), random_pictures(), title="")
    save_graph(random_graph(), tmp_path / "graph.npz")
    assert main(["inspect", str(tmp_path / "graph.npz"), "--html", str(tmp_path / "page.html")]) == 1
    assert "give them with --data" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_a_graph_is_drawn_over_the_picture_with_its_layers_named(tmp_path: Path) -> None:
    draw(png(np.full((80, 64, 3), 128, np.uint8)), EXPLANATION, tmp_path / "figure.png")
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "figure.png").read_bytes())).convert("RGB")).astype(int)
    for colour in ((0xFD, 0xE7, 0x25), (0x21, 0x91, 0x8C)):  # both layers' dots are there
        assert (abs(pixels - colour).max(-1) < 20).sum() > 30
    with pytest.raises(ValueError, match="there is nothing to draw"):
        draw(b"", replace(EXPLANATION, explanatory_graph=None), tmp_path / "none.png")


def test_a_heat_map_is_the_sum_of_gaussians_at_the_best_half_of_a_layer() -> None:
    found = heat_map(EXPLANATION, 1)
    scale = 80 / 224
    expected = np.zeros((80, 64))
    for row, column in np.ndindex(80, 64):
        down, right = row + 0.5 - 34.0, column + 0.5 - 44.0
        if abs(down) <= 20 * scale and abs(right) <= 20 * scale:
            expected[row, column] = np.exp(-(down**2 + right**2) / (2 * (15 * scale) ** 2))
    np.testing.assert_allclose(found, expected / expected.max())
    both = heat_map(EXPLANATION, 1, share=1.0)
    assert both[50, 10] > 0.9
    assert not heat_map(replace(EXPLANATION, explanatory_graph=None), 0).any()
