"""Metrics of faithfulness on models whose answer is known: a perfect map, a wrong one, one that knows nothing."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers.cell_maps import cell_of_pixels, control_maps, mean_by_cell, sobel
from analyzers.faithfulness import deletion_insertion, empty, impute, order_of_pixels, road
from analyzers.manifest import Grid
from analyzers.rank import ranks, spearman

GRID = Grid(cells=(4, 4), stride=(4, 4), offset=(2, 2), receptive_field=(4, 4))
INSIDE = cell_of_pixels(GRID, 16, 16)
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.random((3, 16, 16)).astype(np.float32)
WEIGHT = np.zeros((4, 4))
WEIGHT[1, 2], WEIGHT[2, 2] = 2.0, 1.0  # the two cells that the model looks at


def score(images: np.ndarray, number: int) -> np.ndarray:
    """A model that answers 1 for its own picture and less the further the cells that it looks at are from theirs."""
    away = abs(images - IMAGE).mean(1)
    cells = mean_by_cell(away, INSIDE, 16)
    return 1 - np.clip(cells @ WEIGHT.ravel(), 0, 1)


def measure(cells: np.ndarray) -> tuple[float, float]:
    return deletion_insertion(IMAGE, order_of_pixels(cells, INSIDE), 16, score, 0, "mean")


def test_a_perfect_map_beats_its_reverse_and_any_lot() -> None:
    deletion, insertion = measure(WEIGHT)
    worst_deletion, worst_insertion = measure(-WEIGHT)
    assert deletion < worst_deletion
    assert insertion > worst_insertion
    lots = [measure(RANDOM.random((4, 4))) for _ in range(50)]
    assert all(insertion - deletion >= i - d - 1e-12 for d, i in lots)
    assert abs(np.mean([i - d for d, i in lots])) < 0.1 * (insertion - deletion)
    assert insertion - deletion == pytest.approx(worst_deletion - worst_insertion)  # the same order, the other way


def test_deletion_and_insertion_literally() -> None:
    """Trapezoids over removing 0 to 16 cells one by one."""
    order = order_of_pixels(WEIGHT, INSIDE)
    colour = IMAGE.mean((1, 2))
    ranked = np.argsort(-WEIGHT.ravel(), kind="stable")
    removed, inserted = [], []
    for count in range(17):
        gone, there = IMAGE.copy(), np.broadcast_to(colour[:, None, None], IMAGE.shape).copy()
        for cell in ranked[:count]:
            row, column = divmod(int(cell), 4)
            place = (slice(None), slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
            gone[place], there[place] = colour[:, None, None], IMAGE[place]
        removed.append(float(score(gone[None], 0)[0]))
        inserted.append(float(score(there[None], 0)[0]))
    expected = [np.trapezoid(way) / 16 for way in (removed, inserted)]
    assert deletion_insertion(IMAGE, order, 16, score, 0, "mean") == pytest.approx(expected, abs=1e-6)


def test_road_likes_the_perfect_map_and_not_its_reverse() -> None:
    def measured(cells: np.ndarray) -> float:
        return road(IMAGE, order_of_pixels(cells, INSIDE), 16, score, 0, np.random.default_rng(0))

    assert measured(WEIGHT) > 0.1
    assert measured(WEIGHT) == pytest.approx(-measured(-WEIGHT), abs=0.05)
    assert abs(np.mean([measured(RANDOM.random((4, 4))) for _ in range(40)])) < 0.05


def test_what_is_imputed_lies_between_its_neighbours_and_the_rest_stays() -> None:
    slope = np.broadcast_to(np.linspace(0, 1, 16), (1, 3, 16, 16))
    holes = np.zeros((1, 16, 16), bool)
    holes[:, 4:12, 4:12] = True
    filled = impute(slope, holes)
    np.testing.assert_array_equal(filled[:, :, ~holes[0]], slope[:, :, ~holes[0]])
    np.testing.assert_allclose(filled, slope, atol=0.05)  # a plane is its own interpolation
    everything = impute(slope, np.ones((1, 16, 16), bool))
    assert np.isfinite(everything).all()


@pytest.mark.parametrize("fill", ["mean", "blur"])
def test_nothing_has_no_detail(fill: str) -> None:
    nothing = empty(IMAGE, fill)
    assert nothing.shape == IMAGE.shape
    assert (
        sobel(nothing.mean(0, dtype=np.float64)[None]).mean()
        < 0.2 * sobel(IMAGE.mean(0, dtype=np.float64)[None]).mean()
    )
    np.testing.assert_allclose(nothing.mean((1, 2)), IMAGE.mean((1, 2)), atol=0.05)


def test_each_pixel_lies_in_its_nearest_cell() -> None:
    grid = Grid(cells=(2, 3), stride=(4, 2), offset=(0.5, 0.5), receptive_field=(9, 9))
    inside = cell_of_pixels(grid, 8, 6)
    for y in range(8):
        for x in range(6):
            away = [
                (abs(y + 0.5 - (0.5 + 4 * r)) / 4, abs(x + 0.5 - (0.5 + 2 * c)) / 2, r * 3 + c)
                for r in range(2)
                for c in range(3)
            ]
            nearest = min(down for down, _, _ in away), min(across for _, across, _ in away)
            assert any((down, across) == nearest and cell == inside[y, x] for down, across, cell in away)


def test_controls_know_the_picture_or_not_even_that() -> None:
    images = np.stack([IMAGE, np.zeros_like(IMAGE)])
    images[1, :, :, 8:] = 1
    maps = control_maps(images, GRID)
    assert np.unravel_index(maps["centre"][0].argmax(), (4, 4)) in {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert maps["edges"][1][:, 1:3].min() > maps["edges"][1][:, [0, 3]].max()
    assert maps["random"].shape == (2, 4, 4)


def test_rank_correlation_by_hand() -> None:
    assert ranks(np.array([3.0, 1, 2, 2])).tolist() == [3, 0, 1.5, 1.5]
    assert spearman(np.array([1, 2, 3]), np.array([10, 20, 99])) == pytest.approx(1)
    assert spearman(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    assert spearman(np.array([1, 2, 3, 4]), np.array([1, 2, 4, 3])) == pytest.approx(0.8)
    assert np.isnan(spearman(np.ones(3), np.array([1, 2, 3])))
