"""The interpretable layer, against the literal equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import oracles
from training.parts import PartLayer


def layer(cells: int = 5, filters: int = 4, classes: int = 3) -> PartLayer:
    torch.manual_seed(0)
    return PartLayer(2, filters, cells, classes)


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
