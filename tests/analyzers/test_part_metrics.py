"""Part interpretability: thresholds, regions and overlaps against hand-made and literal oracles."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers.part_metrics import (
    Plane,
    activation_threshold,
    associations,
    bilinear,
    box_masks,
    disc,
    discs,
    iou,
    part_interpretability,
    single_disc_associations,
)
from tests import oracles


def plane(cells: int = 5, side: int = 20, raster: int = 20) -> Plane:
    centres = (np.arange(cells) + 0.5) * side / cells
    return Plane((side, side), centres, centres, raster)


@pytest.mark.parametrize("pictures", [1, 4, 20, 50])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_at_most_half_a_percent_of_the_cells_lies_above_the_threshold(pictures: int, levels: int) -> None:
    maps = np.random.default_rng(0).integers(0, levels, (pictures, 4, 10, 10)).astype(float)
    threshold = activation_threshold(maps)
    allowed = 0.005 * pictures * 100
    for f in range(4):
        assert (maps[:, f] > threshold[f]).sum() <= allowed <= (maps[:, f] >= threshold[f]).sum()


def test_distinct_values_light_up_exactly_half_a_percent() -> None:
    maps = np.random.default_rng(0).permutation(2000).reshape(5, 1, 20, 20) * 1.0
    assert (maps > activation_threshold(maps)[0]).sum() == 10


def test_regions_that_equal_the_part_make_one_and_disjoint_ones_zero() -> None:
    random, box = np.random.default_rng(0), np.array([[[2, 2, 8, 8]], [[5, 1, 18, 9]], [[0, 0, 3, 20]]], float)
    masks = iter(box_masks(plane(), box)[:, 0])

    def same(maps: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        part = next(masks)
        return np.stack((part, ~part))

    hits = associations(random.random((3, 2, 5, 5)), box, plane(), same)
    np.testing.assert_array_equal(part_interpretability(hits, np.ones((3, 1), bool)), [1, 0])


def test_an_overlap_of_exactly_a_fifth_is_none() -> None:
    region, part = np.zeros((2, 400), bool), np.zeros((1, 400), bool)
    part[0, :100] = True
    region[0, :20], region[1, :21] = True, True
    overlap = iou(region, part)
    np.testing.assert_array_equal(overlap > 0.2, [[False], [True]])
    assert overlap[0, 0] == 0.2


def test_nothing_overlaps_nothing() -> None:
    assert iou(np.zeros((1, 9), bool), np.zeros((1, 9), bool))[0, 0] == 0


def test_part_interpretability_is_its_definition() -> None:
    random = np.random.default_rng(1)
    maps = random.random((12, 4, 5, 5)) * (random.random((12, 4, 5, 5)) < 0.3)
    corner = random.random((12, 2, 2)) * 14
    box = np.concatenate((corner, corner + 6), -1)
    box[random.random((12, 2)) < 0.3] = np.nan
    # 0.5 % of 300 cells is one; strong cells near the first part's middle make the scores differ
    hits = associations(maps, box, plane(), disc(plane(), 4.0))
    visible = np.isfinite(box).all(-1)
    expected = oracles.part_interpretability(maps.reshape(12, 4, 25), plane().centres, 4.0, box, 20, 20)
    np.testing.assert_allclose(part_interpretability(hits, visible), expected)
    assert expected.max() > 0


def test_parts_that_are_not_marked_do_not_count() -> None:
    hits = np.zeros((4, 1, 2), bool)
    hits[0, 0, 1] = True
    visible = np.array([[True, True], [True, False], [True, False], [True, False]])
    assert part_interpretability(hits, visible)[0] == 1
    assert np.isnan(part_interpretability(hits, np.zeros((4, 2), bool)))[0]


def test_a_weight_of_two_is_a_picture_twice() -> None:
    random = np.random.default_rng(0)
    hits, visible = random.random((6, 3, 2)) < 0.5, random.random((6, 2)) < 0.7
    rows = np.array([0, 0, 2, 3, 3, 3])
    weighted = part_interpretability(hits, visible, np.bincount(rows, minlength=6).astype(float))
    np.testing.assert_allclose(weighted, part_interpretability(hits[rows], visible[rows]))


def test_a_silent_filter_has_no_region() -> None:
    maps = np.zeros((2, 1, 5, 5))
    for region in (disc(plane(), 4.0), bilinear(plane())):
        assert not region(maps[0], activation_threshold(maps)).any()


def test_a_disc_is_round_and_as_large_as_it_should_be() -> None:
    fine = plane(raster=200)
    area = discs(fine, np.array([[10.0, 10.0]]), 5.0).mean() * 400
    assert area == pytest.approx(np.pi * 25, rel=0.01)


def test_bilinear_regions_pass_through_the_cells_own_values() -> None:
    at_cells = plane(cells=5, raster=5)  # one raster point on each cell's centre
    maps = np.random.default_rng(0).random((3, 5, 5))
    threshold = np.array([0.2, 0.5, 0.9])
    np.testing.assert_array_equal(bilinear(at_cells)(maps, threshold), maps.reshape(3, -1) > threshold[:, None])


def test_a_bilinear_ramp_is_cut_where_it_crosses_the_threshold() -> None:
    ramp = np.broadcast_to(np.arange(5.0), (1, 5, 5))
    region = bilinear(plane())(ramp, np.array([1.6])).reshape(20, 20)
    x = np.arange(20) + 0.5
    np.testing.assert_array_equal(region, np.broadcast_to((x - 2) / 4 > 1.6, (20, 20)))


def test_made_up_maps_score_as_the_same_maps_would() -> None:
    """The quick way for controls equals the long way through one-hot maps."""
    random = np.random.default_rng(0)
    n, filters = 30, 3
    cell, strength = random.integers(0, 25, (n, filters)), random.random((n, filters))
    maps = np.zeros((n, filters, 25))
    np.put_along_axis(maps, cell[..., None], strength[..., None], 2)
    corner = random.random((n, 2, 2)) * 14
    box = np.concatenate((corner, corner + 6), -1)
    slow = associations(maps.reshape(n, filters, 5, 5), box, plane(), disc(plane(), 4.0))
    table = iou(discs(plane(), plane().centres, 4.0), box_masks(plane(), box).reshape(n * 2, -1)) > 0.2
    fast = single_disc_associations(cell, strength, table.reshape(25, n, 2).swapaxes(0, 1), 25)
    np.testing.assert_array_equal(fast, slow)
    assert fast.any()
