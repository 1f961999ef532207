"""The lattice EM of one filter against literal loops, and the laws that it keeps exactly."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests import graph_oracles as oracles
from training.graph_em import Expected, Lattice, best_cells, expectation, moved, positions, spread_of
from training.graph_filter import Above, Rule, find_nodes, first_places, learn_filter
from training.graph_parents import Candidates, choose_candidates, choose_parents, follow_parents, follow_root
from training.graph_root import displacement_grid, vote

CELLS = 7


def floats(random: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(random.random(shape))


def centres(cells: int) -> torch.Tensor:
    return (torch.arange(cells, dtype=torch.float64) + 0.5) / cells


def case(seed: int, pictures: int = 3, nodes: int = 4) -> tuple[torch.Tensor, Lattice, Expected]:
    """Random activation of which a third is 0, some pictures taken as mirrored, some nodes far outside."""
    random = np.random.default_rng(seed)
    activation = (floats(random, pictures, CELLS, CELLS) * 3 - 1).clamp(min=0)
    mirrored = floats(random, pictures, 1) < 0.5
    columns = torch.where(mirrored, 1 - centres(CELLS), centres(CELLS) + 0.01)
    centre = floats(random, pictures, nodes, 2) * 1.4 - 0.2
    expected = Expected(centre, floats(random, pictures, nodes) * 4 - 2, floats(random, nodes) * 0.3 + 0.05)
    return activation, Lattice(centres(CELLS), columns), expected


@pytest.mark.parametrize(("window", "noise"), [(True, None), (False, None), (False, 0.3)])
def test_the_separable_sums_are_those_of_literal_loops(window: bool, noise: float | None) -> None:
    for seed in range(5):
        activation, lattice, expected = case(seed)
        half = torch.full((4,), 0.25, dtype=torch.float64) if window else None
        got = expectation(activation, lattice, expected, half, tau=0.1, noise=noise)
        columns = lattice.columns.numpy()
        parts = (expected.centre.numpy(), expected.log_scale.numpy(), expected.spread.numpy())
        want = oracles.em_sums(
            activation.numpy(),
            lattice.rows.numpy(),
            columns,
            *parts,
            None if half is None else half.numpy(),
            0.1,
            noise,
        )
        for name, value in want.items():
            np.testing.assert_allclose(getattr(got, name), value, rtol=1e-12, atol=1e-12, err_msg=name)


def test_pictures_that_come_in_chunks_leave_the_same_sums() -> None:
    activation, lattice, expected = case(1, pictures=10)
    whole = expectation(activation, lattice, expected, None)
    for size in (1, 3, 7):
        parts = [slice(start, start + size) for start in range(0, 10, size)]
        sums = [expectation(activation[p], lattice.take(p), expected.take(p), None) for p in parts]
        for other in sums[1:]:
            sums[0].add(other)
        for name in ("claimed", "pull", "weight", "scatter"):
            np.testing.assert_allclose(getattr(sums[0], name), getattr(whole, name), rtol=1e-12, atol=1e-13)


def test_the_chunk_does_not_change_what_is_learned() -> None:
    planted = torch.from_numpy(oracles.plant(3, pictures=40).maps[0][0])
    lattice = Lattice(centres(14), centres(14)[None])
    start = first_places((0,), 6, centres(14), centres(14))
    one, other = (learn_filter(planted, lattice, start, Above(None, None), Rule(chunk=c)) for c in (10_000, 1_500))
    np.testing.assert_allclose(one.prior, other.prior, rtol=0, atol=1e-12)
    np.testing.assert_allclose(one.sigma, other.sigma, rtol=0, atol=1e-12)


def test_each_step_raises_the_likelihood_where_spread_window_and_noise_are_fixed() -> None:
    random = np.random.default_rng(2)
    activation = (floats(random, 4, CELLS, CELLS) * 2 - 1).clamp(min=0)
    lattice, spread, noise = Lattice(centres(CELLS), centres(CELLS)[None]), 0.12, 0.05
    prior = floats(random, 3, 2)
    history = []
    for _ in range(12):
        expected = follow_root(prior, None, spread)
        scale = float(expected.log_scale[0, 0])
        history.append(
            oracles.log_likelihood(activation.numpy(), centres(CELLS).numpy(), prior.numpy(), scale, spread, noise)
        )
        prior = moved(prior, expectation(activation, lattice, expected, None, noise=noise))
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(history))
    assert history[-1] > history[0] + 0.1


def test_parents_predict_what_the_product_of_their_gaussians_says() -> None:
    random = np.random.default_rng(4)
    candidates = Candidates(torch.arange(6), floats(random, 3, 6, 2) * 0.4 - 0.2, floats(random, 6) * 0.2 + 0.05)
    prior, chosen = floats(random, 2, 2), torch.tensor([[0, 3, 5], [1, 2, 3]])
    got = follow_parents(prior, chosen, candidates)
    for i in range(3):
        for n in range(2):
            delta, sigma = candidates.displacement[i, chosen[n]].numpy(), candidates.sigma[chosen[n]].numpy()
            centre, scale, spread = oracles.from_parents(prior[n].numpy(), delta, sigma)
            np.testing.assert_allclose(got.centre[i, n], centre, atol=1e-9)
            assert float(got.log_scale[i, n]) == pytest.approx(scale, abs=1e-9)
            assert float(got.spread[n]) == pytest.approx(spread, rel=1e-9)


def test_parents_that_agree_cost_nothing_and_equal_spreads_stay() -> None:
    delta, sigma = (torch.full(shape, value, dtype=torch.float64) for shape, value in (((1, 4, 2), 0.1), ((4,), 0.07)))
    same = Candidates(torch.arange(4), delta, sigma)
    got = follow_parents(torch.full((1, 2), 0.5).double(), torch.arange(4)[None], same)
    np.testing.assert_allclose(got.centre, [[[0.6, 0.6]]], atol=1e-12)
    assert float(got.spread[0]) == pytest.approx(0.07, abs=1e-15)
    assert float(got.log_scale[0, 0]) == pytest.approx(-np.log(2 * np.pi * 0.07**2), abs=1e-12)
    apart = Candidates(same.node, same.displacement + torch.tensor([0.0, 0.1, -0.1, 0.0])[:, None], same.sigma)
    less = follow_parents(torch.full((1, 2), 0.5).double(), torch.arange(4)[None], apart)
    np.testing.assert_allclose(less.centre, got.centre, atol=1e-12)
    assert float(less.log_scale[0, 0]) < float(got.log_scale[0, 0]) - 0.1


def test_the_best_cell_is_that_of_literal_loops() -> None:
    for seed in range(5):
        activation, lattice, expected = case(seed)
        cell, score = best_cells(activation, lattice, expected)
        for i in range(3):
            for n in range(4):
                want, value = oracles.best_cell(
                    activation[i].numpy(),
                    lattice.rows.numpy(),
                    lattice.columns[i].numpy(),
                    expected.centre[i, n].numpy(),
                    float(expected.log_scale[i, n]),
                    float(expected.spread[n]),
                )
                assert int(cell[i, n]) == want
                assert float(score[i, n]) == pytest.approx(value, abs=1e-12)


def test_a_dead_map_gives_the_nearest_cell_and_a_finite_score() -> None:
    lattice = Lattice(centres(CELLS), centres(CELLS)[None])
    expected = follow_root(torch.tensor([[0.5, 0.21]]).double(), None, 0.15)
    cell, score = best_cells(torch.zeros(1, CELLS, CELLS).double(), lattice, expected)
    assert divmod(int(cell), CELLS) == (3, 1)
    assert np.isfinite(float(score))
    nodes = learn_filter(torch.zeros(2, CELLS, CELLS).double(), lattice, expected.centre[0], Above(None, None), Rule())
    assert torch.isfinite(nodes.prior).all()
    assert torch.isfinite(nodes.sigma).all()


def test_of_equal_cells_the_first_is_taken() -> None:
    lattice = Lattice(centres(4), centres(4)[None])
    expected = follow_root(torch.tensor([[0.5, 0.5]]).double(), None, 0.15)  # between four cells
    cell, _ = best_cells(torch.ones(1, 4, 4).double(), lattice, expected)
    assert int(cell) == 5


@pytest.mark.parametrize("start", [(0.0, 0.0), (0.1, -0.1), (-0.14, 0.0)])
def test_a_node_finds_a_planted_peak_within_its_reach(start: tuple[float, float]) -> None:
    activation = torch.zeros(2, 14, 14).double()
    activation[:, 6, 9] = 1.0
    lattice, peak = Lattice(centres(14), centres(14)[None]), torch.tensor([[6.5 / 14, 9.5 / 14]]).double()
    nodes = learn_filter(activation, lattice, peak + torch.tensor([start]).double(), Above(None, None), Rule())
    np.testing.assert_allclose(nodes.prior, peak, atol=1e-9)
    cell, _ = find_nodes(nodes, activation, lattice, Above(None, None), 1)
    assert cell.unique().tolist() == [6 * 14 + 9]


def test_a_map_times_c_keeps_the_positions_and_multiplies_the_scores() -> None:
    activation = torch.from_numpy(oracles.plant(5, pictures=30).maps[0][1]) + 1e-3  # so that LOG_EPS is nothing
    lattice, above = Lattice(centres(14), centres(14)[None]), Above(None, None)
    start = first_places((1,), 5, centres(14), centres(14))
    one, other = (learn_filter(activation * c, lattice, start, above, Rule()) for c in (1.0, 8.0))
    np.testing.assert_allclose(one.prior, other.prior, atol=1e-12)
    (cell, score), (again, higher) = (find_nodes(one, activation * c, lattice, above, 1000) for c in (1.0, 8.0))
    assert torch.equal(cell, again)
    np.testing.assert_allclose(higher - score, np.log(8), atol=1e-2)


def test_a_shift_by_whole_cells_moves_nodes_by_exactly_that() -> None:
    random = np.random.default_rng(6)
    activation = torch.zeros(6, 20, 20).double()
    activation[:, 5:13, 5:13] = (floats(random, 6, 8, 8) * 4 - 3).clamp(min=0)
    lattice, above = Lattice(centres(20), centres(20)[None]), Above(None, None)
    start = torch.tensor([[0.4, 0.4], [0.5, 0.45], [0.35, 0.5]]).double()
    one = learn_filter(activation, lattice, start, above, Rule())
    by = torch.tensor([2, -1])
    shifted = activation.roll((2, -1), (1, 2))
    other = learn_filter(shifted, lattice, start + by / 20, above, Rule())
    np.testing.assert_allclose(other.prior, one.prior + by / 20, atol=1e-9)
    places = [
        positions(find_nodes(nodes, maps, lattice, above, 1000)[0], lattice)
        for nodes, maps in ((one, activation), (other, shifted))
    ]
    np.testing.assert_allclose(places[1], places[0] + by / 20, atol=1e-12)


def test_the_spread_is_the_rms_distance_an_axis_and_stays_within_its_bounds() -> None:
    activation, lattice, expected = case(0)
    sums = expectation(activation, lattice, expected, None)
    spread = spread_of(sums, 10.0)
    np.testing.assert_allclose(spread, (sums.scatter / sums.weight / 2).sqrt().clamp(min=1.0), rtol=1e-12)
    assert (spread_of(sums, 0.1) <= 0.1).all()


def test_the_root_vote_is_that_of_literal_loops_and_finds_the_mirror() -> None:
    random = np.random.default_rng(7)
    rows = centres(8)
    maps = [(floats(random, 2, 8, 8) * 4 - 3).clamp(min=0) for _ in range(3)]
    prior = [floats(random, 2) for _ in range(3)]
    places = displacement_grid().astype(np.float64)
    root, mirrored = vote(zip(maps, prior, strict=True), rows, rows, mirrored=False)
    assert not mirrored.any()
    for i in range(2):
        want = oracles.root_votes([m[i].numpy() for m in maps], [p.numpy() for p in prior], rows.numpy(), places)
        np.testing.assert_allclose(root[i], places[want.argmax()], atol=1e-12)
    layout = torch.zeros(3, 1, 8, 8).double()
    at = [(1, 1), (2, 6), (6, 2)]
    for one, (row, column) in zip(layout, at, strict=True):
        one[0, row, column] = 1.0
    known = [torch.stack((rows[row], rows[column])) for row, column in at]
    plain = vote(zip(layout, known, strict=True), rows, rows, mirrored=True)
    flipped = vote(zip(layout.flip(3), known, strict=True), rows, rows, mirrored=True)
    assert (bool(plain[1]), bool(flipped[1])) == (False, True)
    np.testing.assert_allclose(torch.cat((plain[0], flipped[0])), np.zeros((2, 2)), atol=1e-12)


def test_the_parents_of_a_node_are_those_that_move_as_it_does() -> None:
    random = np.random.default_rng(8)
    swing = torch.from_numpy(random.normal(0, 0.1, (50, 1, 2)))
    other = torch.from_numpy(random.normal(0, 0.1, (50, 5, 2)))
    together = swing + torch.from_numpy(random.normal(0, 0.01, (50, 3, 2)))
    displacement = torch.cat((other, together), 1)
    candidates = Candidates(torch.arange(8), displacement - displacement.mean(0), torch.full((8,), 0.1).double())
    chosen = choose_parents(swing + 0.5, torch.zeros(50, 1).double(), candidates, 3)
    assert sorted(chosen[0].tolist()) == [5, 6, 7]


def test_nodes_that_stand_still_or_touch_the_border_are_no_candidates_unless_there_are_no_others() -> None:
    rank = np.arange(8.0)
    mean = np.full((8, 2), 0.5)
    mean[7] = 0.95
    variance = np.array([9.0, 9, 9, 0, 0, 0, 0, 9])
    assert choose_candidates(rank, mean, variance, 5, 1).tolist() == [2, 1, 0]
    assert choose_candidates(rank, mean, variance, 2, 1).tolist() == [2, 1]
    assert choose_candidates(rank, mean, variance, 5, 4).tolist() == [7, 2, 1, 0]
    assert choose_candidates(rank, mean, variance, 9, 9).tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


def test_first_places_are_distinct_cells_and_depend_on_the_seed_alone() -> None:
    rows, columns = centres(5), centres(6)
    one, again, other = (first_places((0, 1, n), 30, rows, columns) for n in (2, 2, 3))
    assert len({tuple(place) for place in one.tolist()}) == 30
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
