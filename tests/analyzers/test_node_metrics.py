"""Measures of nodes on made-up pictures whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers.graph_gain import description_bits, predictive_gain
from analyzers.graph_report import graph_report
from analyzers.node_metrics import locate_part, on_parts, part_purity, percentiles
from analyzers.part_metrics import Plane
from analyzers.pictures import PartMarks, Pictures
from tests.graph_oracles import SIDE, Planted, plant
from tests.training.test_explanatory_graph import learn

PLANE = Plane((100, 100), np.arange(5, 100, 10.0), np.arange(5, 100, 10.0), raster=100)


def test_a_circle_belongs_to_the_part_that_holds_more_than_half_of_it() -> None:
    box = np.array([[[0, 0, 50, 100], [60, 0, 100, 100]]], float)
    position = np.array([[[20, 50], [49, 50], [52, 50], [55, 50], [90, 20], [np.nan, np.nan]]], float)
    got = on_parts(position, box, PLANE, radius=0.05)[0]
    assert got.tolist() == [[True, False], [True, False], [False, False], [False, False], [False, True], [False, False]]
    assert not on_parts(position, np.full((1, 2, 4), np.nan), PLANE).any()


def test_purity_is_the_share_of_the_best_pictures_on_one_part() -> None:
    on_part = np.zeros((8, 2, 2), bool)
    on_part[:4, 0, 0] = on_part[4:7, 0, 1] = True  # node 0: four pictures on part 0, three on part 1
    on_part[:, 1, 1] = True
    strength = np.tile(np.arange(8.0, 0, -1)[:, None], (1, 2))
    known = np.ones((8, 2), bool)
    assert part_purity(on_part, strength, known, top=8).tolist() == [4 / 8, 1]
    assert part_purity(on_part, strength, known, top=5).tolist() == [4 / 5, 1]
    assert part_purity(on_part, -strength, known, top=4, minimum=1).tolist() == [3 / 4, 1]
    known[3:, 0] = False
    assert np.isnan(part_purity(on_part, strength, known)[0])  # three pictures say nothing
    assert part_purity(on_part, strength, known, minimum=3)[0] == 1


def test_percentiles_are_places_among_the_quantiles() -> None:
    quantiles = np.linspace(-2, 0, 21)[None].repeat(2, 0)
    got = percentiles(np.array([[-2.0, -1.0], [-9.0, 5.0], [-0.5, -0.05]]), quantiles)
    np.testing.assert_allclose(got, [[0, 0.5], [0, 1], [0.75, 0.975]])


@pytest.mark.parametrize("shots", [1, 3, 5])
def test_a_part_is_located_from_a_few_marks_by_the_nodes_that_go_with_it(shots: int) -> None:
    """Half of the nodes are at the mark plus a constant, half anywhere: the former answer once three are shown."""
    random = np.random.default_rng(0)
    mark = random.random((60, 2))
    follow = mark[:, None] + random.uniform(-0.05, 0.05, (1, 10, 2)) + random.normal(0, 0.005, (60, 10, 2))
    position = np.concatenate((random.random((60, 10, 2)), follow), 1)
    score, percentile = np.zeros((60, 20)), np.ones((60, 20))
    predicted = locate_part(
        position[:shots], score[:shots], mark[:shots], position[shots:], percentile[shots:], nodes=8
    )
    miss = np.linalg.norm(predicted - mark[shots:], axis=-1)
    assert np.median(miss) < (0.2 if shots == 1 else 0.02)


def test_fewer_bits_are_needed_where_the_nodes_know_where_the_activation_is() -> None:
    random = np.random.default_rng(1)
    u = (np.arange(12) + 0.5) / 12
    place = random.uniform(0.2, 0.8, (30, 1, 2))
    maps = np.exp(
        -(((u - place[..., :1]) ** 2)[:, 0, :, None] + ((u - place[..., 1:]) ** 2)[:, 0, None]) / (2 * 0.05**2)
    )
    static, spread = maps.mean(0) + 1e-6, np.array([0.06])
    columns = np.broadcast_to(u, (30, 12))
    right = description_bits(maps, u, columns, (place, spread), static)
    wrong = description_bits(maps, u, columns, (np.roll(place, 7, 0), spread), static)
    assert right / maps.sum() < wrong / maps.sum() - 1  # more than one bit each
    assert description_bits(maps * 0, u, columns, (place, spread), static) == 0
    far = description_bits(maps, u, columns, (place + 50, spread), static)  # a node that reaches no cell
    assert right < far < np.inf


def test_nodes_beat_raw_peaks_and_wrong_parents_on_planted_parts(tmp_path_factory: pytest.TempPathFactory) -> None:
    train, test = (_part(plant(0, pictures=240), part) for part in (slice(0, 120), slice(120, 240)))
    graph = learn(train, tmp_path_factory.mktemp("graph") / "blocks")
    for gain in predictive_gain(graph, next(test.batches(["m0", "m1"])), (SIDE, SIDE)):
        assert gain["gain"] == gain["shuffled_parents"] - gain["nodes"] > 0.2
    report = graph_report(graph, test.batches(["m0", "m1"]), _pictures(test), (SIDE, SIDE), nodes=40)
    for name, lower_is_better in (("location_instability", True), ("tracking_ratio", True), ("purity", False)):
        figure, sign = report[name], 1 if lower_is_better else -1
        for control in ("raw_peaks", "shuffled_parents", "random"):
            assert sign * figure["value"] < sign * figure["controls"][control], (name, control)
        assert figure["n"] == 120
        assert 0 < figure["standard_error"] < 0.5 * figure["value"]
        assert [one["layer"] for one in figure["layers"]] == ["m0", "m1"]
        lower = figure["layers"][1]
        assert sign * lower["value"] < sign * lower["controls"]["shuffled_parents"]


def _part(planted: Planted, part: slice) -> Planted:
    return Planted(tuple(maps[:, part] for maps in planted.maps), (), planted.parts[:, part])


def _pictures(planted: Planted) -> Pictures:
    """Pictures without pixels whose marks are the planted parts, boxes a tenth of the side."""
    count, xy = planted.pictures, planted.parts.swapaxes(0, 1)[..., ::-1].astype(np.float32)
    marks = PartMarks(tuple("abcdef"), xy, np.concatenate((xy - 0.06, xy + 0.06), -1))
    zeros = np.zeros(count, np.int64)
    return Pictures(("thing",), (b"",) * count, zeros, zeros, np.arange(count), marks)
