"""Part templates by the paper's equation, peaks as ONNX Runtime reports them, and what of them is said."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from analyzers.geometry import Frame
from analyzers.manifest import Grid, Parts
from analyzers.parts import FRAGMENT, FRAGMENTS, decode, misplaced, part_template
from analyzers.runtime import open_session
from tests import oracles


@pytest.mark.parametrize(("n", "beta"), [(1, 4.0), (3, 4.0), (6, 4.0), (7, 2.5), (14, 4.0)])
def test_every_template_is_the_paper_s(n: int, beta: float) -> None:
    table = part_template(n, beta)
    assert table.shape == (n * n, n * n)
    assert table.dtype == np.float32
    for mu in range(n * n):
        expected = oracles.part_template(n, divmod(mu, n), beta)
        np.testing.assert_allclose(table[mu].reshape(n, n), expected, atol=1e-6)


def test_the_templates_of_a_3_x_3_map_in_numbers() -> None:
    table, third = part_template(3), -1 / 3
    np.testing.assert_allclose(table[4].reshape(3, 3), [[-1, third, -1], [third, 1, third], [-1, third, -1]], atol=1e-6)
    np.testing.assert_allclose(table[0].reshape(3, 3), [[1, third, -1], [third, -1, -1], [-1, -1, -1]], atol=1e-6)


def test_a_row_of_a_14_x_14_template_in_numbers() -> None:
    row = part_template(14)[0].reshape(14, 14)[0]
    falling = [1, 0.7143, 0.4286, 0.1429, -0.1429, -0.4286, -0.7143, -1, -1, -1, -1, -1, -1, -1]
    np.testing.assert_allclose(row, falling, atol=5e-5)


def peaks(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run the fragment and return its cells and scores."""
    answer = open_session(onnx.parser.parse_model(FRAGMENT).SerializeToString()).run({"map": maps.astype(np.float32)})
    return answer["cell"], answer["score"]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 4, 5, 5), (7, 3, 4, 9), (2, 6, 14, 1)])
@pytest.mark.parametrize("levels", [0, 2])
def test_the_graph_reports_the_first_highest_cell_and_its_value(shape: tuple[int, ...], levels: int) -> None:
    random = np.random.default_rng(0)
    maps = (random.integers(0, levels, shape) if levels else random.normal(0, 1, shape)).astype(np.float32)
    cell, score = peaks(maps)
    assert (cell.dtype, score.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(cell, maps.reshape(*shape[:2], -1).argmax(2))  # numpy, too, takes the first
    np.testing.assert_array_equal(score, maps.max((2, 3)))


def test_of_two_equal_peaks_the_upper_and_then_the_left_one_counts() -> None:
    maps = np.zeros((1, 3, 3, 4))
    maps[0, 0, 2, 0] = maps[0, 0, 1, 3] = 5
    maps[0, 1, 1, 1] = maps[0, 1, 1, 2] = 5
    cell, score = peaks(maps)
    assert cell.tolist() == [[7, 5, 0]]  # the third map is empty
    assert score.tolist() == [[5, 5, 0]]


def test_a_map_below_zero_peaks_where_it_is_least_negative() -> None:
    cell, score = peaks(np.array([[[[-3, -1], [-2, -1]]]]))
    assert (cell.tolist(), score.tolist()) == ([[1]], [[-1]])


def centres_of_mass(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fragment = onnx.parser.parse_model(FRAGMENTS["centroid"]).SerializeToString()
    answer = open_session(fragment).run({"map": maps.astype(np.float32)})
    return answer["cell"], answer["score"]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 4, 5, 5), (7, 3, 4, 9), (2, 6, 14, 1)])
def test_the_graph_reports_the_cell_nearest_to_the_centre_of_mass_and_the_highest_value(shape: tuple[int, ...]) -> None:
    maps = np.maximum(np.random.default_rng(0).normal(0, 1, shape), 0).astype(np.float32)
    cell, score = centres_of_mass(maps)
    assert (cell.dtype, score.dtype) == (np.int64, np.float32)
    for b, k in np.ndindex(shape[:2]):
        row, column = oracles.centroid(maps[b, k])
        assert cell[b, k] == row * shape[3] + column
    np.testing.assert_array_equal(score, maps.max((2, 3)))
    assert not misplaced(maps, cell, "centroid").any()


def test_a_centre_between_two_cells_is_the_later_one_and_an_empty_map_has_the_first() -> None:
    maps = np.zeros((1, 2, 3, 4))
    maps[0, 0, 1, 1] = maps[0, 0, 2, 2] = 5
    cell, score = centres_of_mass(maps)
    assert cell.tolist() == [[2 * 4 + 2, 0]]
    assert score.tolist() == [[5, 0]]
    between = np.array([[1 * 4 + 1, 0]])  # where rounding decides, either will do
    assert not misplaced(maps, between, "centroid").any()


def test_a_cell_next_to_the_peak_is_misplaced() -> None:
    maps = np.random.default_rng(0).random((3, 2, 5, 5), np.float32)
    for peak, cell in {"argmax": peaks(maps)[0], "centroid": centres_of_mass(maps)[0]}.items():
        assert not misplaced(maps, cell, peak).any()
        assert misplaced(maps, (cell + 1) % 25, peak).all()
        assert misplaced(maps, (cell + 5) % 25, peak).all()


def section(learned_for: tuple[int, ...] | None) -> Parts:
    return Parts(
        layer="map",
        cell="cell",
        score="score",
        grid=Grid(cells=(2, 3), stride=(8, 4), offset=(4, 2), receptive_field=(8, 4)),
        filters=5,
        interpretable=True,
        learned_for=learned_for,
    )


OUTPUTS = {
    "cell": np.array([[0, 1, 2, 3, 4], [5, 5, 5, 5, 5]]),
    "score": np.array([[1.0, 0.0, 3.0, -2.0, 1.0], [0.0, 0.5, 0.0, 0.0, np.nan]], np.float32),
}


def test_filters_that_fired_come_strongest_first_and_of_equals_the_lower_number() -> None:
    said = decode(section((2, 0, 1, 0, 0)), ("a", "b", "c"), OUTPUTS, 0, Frame(1, 1, 12, 16))
    assert [(k, part.filter, part.score) for k, part in said.items()] == [(2, 2, 3.0), (0, 0, 1.0), (4, 4, 1.0)]
    assert [part.learned_for for part in said.values()] == ["b", "c", "a"]
    assert [(part.x, part.y) for part in said.values()] == [(10, 4), (2, 4), (6, 12)]


def test_a_score_that_is_not_above_zero_is_no_part() -> None:
    assert list(decode(section(None), ("a",), OUTPUTS, 1, Frame(1, 1, 12, 16))) == [1]


def test_filters_learned_for_no_class_name_none() -> None:
    said = decode(section(None), ("a",), OUTPUTS, 0, Frame(1, 1, 12, 16))
    assert {part.learned_for for part in said.values()} == {""}
