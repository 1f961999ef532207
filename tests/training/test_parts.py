"""The interpretable layer and its filter loss, against the literal equations."""

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


def test_masking_scales_with_the_map() -> None:
    x = maps(3)
    torch.testing.assert_close(layer().mask(x * 7), layer().mask(x) * 7)


def test_the_plain_filter_loss_is_its_equation() -> None:
    part, x = layer(), maps(4)
    label, share = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0.5, 0.3, 0.2])
    part.scale.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    part.response.copy_(torch.eye(4, 3) + 0.1)
    expected = oracles.plain_filter_loss(
        x.numpy(), label.numpy(), part.learned_for.numpy(), part.scale.numpy(), share.numpy()
    )
    assert float(part.filter_loss(x, label, share)) == pytest.approx(expected, rel=1e-5)


def test_the_filter_loss_does_not_change_with_the_scale_of_the_layer() -> None:
    x, label, share = maps(5), torch.tensor([0, 1, 2, 0, 1, 2]), torch.full((3,), 1 / 3)
    small, large = layer(), layer()
    for _ in range(200):
        small.observe(x, label)
        large.observe(x * 1000, label)
    torch.testing.assert_close(
        small.filter_loss(x, label, share), large.filter_loss(x * 1000, label, share), rtol=1e-3, atol=1e-3
    )


def test_the_filter_loss_pulls_to_the_peak_on_own_pictures_and_down_on_others() -> None:
    part = layer(filters=1)
    part.response.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
    x = maps(6, batch=2, filters=1).requires_grad_()
    share = torch.full((3,), 1 / 3)
    part.filter_loss(x, torch.tensor([0, 1]), share).backward()
    gradient, peak = x.grad, x[0, 0].detach().flatten().argmax()
    template = part.templates[peak].reshape(5, 5)
    torch.testing.assert_close(gradient[0, 0], -template * 1.5 / 2)
    assert bool((gradient[1] > 0).all())


def test_a_filter_that_fires_on_one_class_is_learned_for_that_class() -> None:
    part = layer(filters=2)
    for _ in range(50):
        x = torch.zeros(3, 2, 5, 5)
        x[2, 0, 1, 1], x[1, 1, 3, 3] = 4.0, 2.0
        part.observe(x, torch.tensor([0, 1, 2]))
    assert part.learned_for.tolist() == [2, 1]


def test_scales_converge_to_the_mean_peak() -> None:
    part, x = layer(), maps(7)
    for _ in range(300):
        part.observe(x, torch.tensor([0, 1, 2, 0, 1, 2]))
    torch.testing.assert_close(part.scale, x.flatten(2).amax(2).mean(0), rtol=1e-4, atol=1e-5)
