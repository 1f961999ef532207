"""The interpretable layer, against the literal equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import oracles
from training.parts import PartLayer


def layer(cells: int = 5, filters: int = 4, classes: int = 3, **options: object) -> PartLayer:
    torch.manual_seed(0)
    return PartLayer(2, filters, cells, classes, **options)


def maps(seed: int = 0, batch: int = 6, filters: int = 4, cells: int = 5) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(np.maximum(random.normal(0, 1, (batch, filters, cells, cells)), 0).astype(np.float32))


def test_the_mask_is_the_paper_s_template_at_the_first_peak() -> None:
    x = maps()
    np.testing.assert_allclose(layer().mask(x).numpy(), oracles.masked(x.numpy()), atol=1e-6)


def test_a_tied_map_is_masked_at_its_first_cell_and_an_empty_map_stays_empty() -> None:
    x = torch.zeros(1, 4, 5, 5)
    x[0, 1] = 2.0
    masked = layer().mask(x).numpy()
    np.testing.assert_allclose(masked, oracles.masked(x.numpy()), atol=1e-6)
    assert masked[0, 1, 0, 0] == 2.0
    assert not masked[0, 0].any()


def test_the_mask_keeps_the_peak_and_never_adds_activation() -> None:
    x = maps(1)
    masked = layer().mask(x)
    assert torch.equal(masked.flatten(2).amax(2), x.flatten(2).amax(2))
    assert torch.equal(masked.flatten(2).argmax(2), x.flatten(2).argmax(2))
    assert bool(((masked >= 0) & (masked <= x)).all())


@pytest.mark.parametrize("turn", [lambda x: x.flip(3), lambda x: x.transpose(2, 3), lambda x: x.rot90(1, (2, 3))])
def test_masking_commutes_with_flips_and_rotations(turn: object) -> None:
    x = maps(2)
    torch.testing.assert_close(layer().mask(turn(x)), turn(layer().mask(x)))


def test_masking_scales_with_the_map_and_masking_twice_keeps_the_support() -> None:
    x = maps(3)
    masked = layer().mask(x)
    torch.testing.assert_close(layer().mask(x * 7), masked * 7)
    assert torch.equal(layer().mask(masked) > 0, masked > 0)


def test_a_layer_without_mask_is_an_ordinary_one() -> None:
    ordinary = PartLayer(2, 4, 5, 3, masked=False)
    assert torch.equal(ordinary.mask(maps()), maps())
    assert ordinary.gain == 1.0


def test_the_gain_makes_up_for_the_cells_that_the_template_empties() -> None:
    assert layer(cells=8).gain == pytest.approx(64 / 3)  # 1 + 4 x 0.5


def test_a_single_active_cell_passes_whole_wherever_it_is() -> None:
    x = torch.zeros(25, 4, 25)
    x[torch.arange(25), :, torch.arange(25)] = 3.0
    x = x.reshape(25, 4, 5, 5)
    assert torch.equal(layer().mask(x), x)


@pytest.mark.parametrize("beta", [2.0, 4.0, 6.5])
def test_what_passes_is_what_lies_within_side_over_beta_of_the_peak(beta: float) -> None:
    """The radius of a template: n / beta cells, counted along rows and columns; 14 / 4 = 3.5."""
    n = 14
    x = torch.rand(2, 4, n, n, generator=torch.Generator().manual_seed(0)) + 0.1
    masked = layer(n, beta=beta).mask(x)
    for b, k in np.ndindex(2, 4):
        row, column = divmod(int(x[b, k].flatten().argmax()), n)
        for i, j in np.ndindex(n, n):
            assert bool(masked[b, k, i, j] > 0) == (abs(i - row) + abs(j - column) < n / beta)


def test_masking_moves_along_with_a_map_whose_template_stays_inside() -> None:
    n, reach = 14, 3  # 3.5 cells
    x = torch.zeros(1, 4, n, n)
    x[:, :, 3:8, 3:8] = torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(0)) * 0.9
    x[:, :, 5, 5] = 1.0
    for down, right in ((0, 1), (3, 0), (5, 5), (-2, 4)):
        moved = x.roll((down, right), (2, 3))
        peak = divmod(int(moved[0, 0].flatten().argmax()), n)
        assert all(reach <= place < n - reach for place in peak)
        assert torch.equal(layer(n).mask(moved), layer(n).mask(x).roll((down, right), (2, 3)))


def test_the_mask_may_sit_on_the_centre_of_mass() -> None:
    x = maps(4)
    masked = layer(peak="centroid").mask(x).numpy()
    for b, k in np.ndindex(6, 4):
        template = oracles.part_template(5, oracles.centroid(x[b, k].numpy()))
        np.testing.assert_allclose(masked[b, k], np.maximum(x[b, k].numpy() * template, 0), atol=1e-6)


def test_a_layer_without_a_convolution_masks_the_maps_that_come_in() -> None:
    bare = PartLayer(4, 0, 5, 3)
    x = maps(5) - 0.2
    assert bare.filters == 4
    assert not list(bare.conv.parameters() if bare.conv else [])
    torch.testing.assert_close(bare.map(x), x.clamp(min=0))
    np.testing.assert_allclose(bare.mask(bare.map(x)).numpy(), oracles.masked(x.clamp(min=0).numpy()), atol=1e-6)


def test_one_filter_s_steepness_is_saved_once() -> None:
    names = [name for name in layer(beta="per-filter").state_dict() if name.endswith("beta")]
    assert names == ["state.templates.beta"]
