"""What templates are centred on and how far they reach, for square maps and others, in torch and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from analyzers.runtime import open_session
from tests import oracles
from training.export import quietly_export
from training.templates import PartTemplates, centre, part_templates


def maps(seed: int = 0, shape: tuple[int, ...] = (6, 4, 5, 5)) -> torch.Tensor:
    """Return random maps >= 0; the first is empty and in the second four cells share the highest value."""
    x = np.maximum(np.random.default_rng(seed).normal(0, 1, shape), 0).astype(np.float32)
    x[0, 0] = 0
    x[0, 1, :2, 1:3] = 9
    return torch.from_numpy(x)


@pytest.mark.parametrize("shape", [(6, 4, 5, 5), (3, 2, 4, 7), (1, 2, 3, 3)])
def test_a_template_is_centred_on_the_first_highest_cell_or_the_centre_of_mass(shape: tuple[int, ...]) -> None:
    x = maps(shape=shape)
    highest, mass = centre(x, "argmax"), centre(x, "centroid")
    for b, k in np.ndindex(shape[:2]):
        assert int(highest[b, k]) == int(np.argmax(x[b, k].numpy()))
        row, column = oracles.centroid(x[b, k].numpy())
        assert int(mass[b, k]) == row * shape[3] + column
    assert (int(highest[0, 0]), int(mass[0, 0]), int(highest[0, 1])) == (0, 0, 1)


def test_halves_go_up_as_in_the_authors_code() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 1] = x[0, 0, 1, 2] = 1  # row 0.5, column 1.5
    assert int(centre(x, "centroid")) == 1 * 4 + 2


@pytest.mark.parametrize("turn", [lambda x: x.transpose(2, 3), lambda x: x.flip(3), lambda x: x.rot90(1, (2, 3))])
def test_masks_round_the_centre_of_mass_turn_with_their_maps(turn: object) -> None:
    templates = PartTemplates(5, 5, 4, peak="centroid")
    x = maps(1)[1:]  # no centre of mass right between two cells, whose halves go up whichever way the map is turned
    torch.testing.assert_close(templates.mask(turn(x)), turn(templates.mask(x)))


def test_filters_may_have_their_own_steepness() -> None:
    templates = PartTemplates(5, 5, 4, "per-filter")
    templates.beta.copy_(torch.tensor([3.2, 4.0, 5.0, 6.1]))
    x = maps(2)
    for k, beta in enumerate(templates.beta.tolist()):
        expected = oracles.masked(x.numpy(), beta)[:, k]
        np.testing.assert_allclose(templates.mask(x)[:, k].numpy(), expected, atol=1e-6)
        table = torch.from_numpy(np.stack([oracles.part_template(5, divmod(mu, 5), beta) for mu in range(25)])).float()
        flat = x[:, k].flatten(1)
        torch.testing.assert_close(templates.scores(x.flatten(2))[:, k], flat @ table.flatten(1).T, atol=1e-4, rtol=0)


def test_fixed_templates_score_as_their_table_does() -> None:
    templates = PartTemplates(4, 7, 4, 3.0)
    flat = maps(3, (2, 4, 4, 7)).flatten(2)
    torch.testing.assert_close(templates.scores(flat), flat @ part_templates(4, 7, 3.0).T)


def test_steepness_follows_the_spread_of_own_maps_within_its_bounds() -> None:
    """3 / spread, between 1.5 and 3 along -1..1, which is 2 n / (n - 1) as much in the paper's units."""
    n, unit = 7, 2 * 7 / 6
    x = torch.zeros(2, 4, n, n)
    x[0, 0, 3, 3] = 1  # no spread at all: as steep as it gets
    x[0, 1, [0, 6], [0, 6]] = 1
    x[0, 1, 3, 3] = 3  # spread of sqrt((18 + 18) / 5) = 2.7 cells: as flat as it gets
    x[1] = torch.rand(4, n, n, generator=torch.Generator().manual_seed(0))  # of another class: does not count
    own = torch.tensor([[True, True, True, False], [False] * 4])  # the third is silent
    templates = PartTemplates(n, n, 4, "per-filter")
    first = templates.beta.clone()
    torch.testing.assert_close(first, torch.full((4,), 2 * unit))
    for _ in range(2000):
        templates.adapt(x, own)
    torch.testing.assert_close(templates.beta[:2], torch.tensor([3 * unit, 1.5 * unit]), rtol=1e-4, atol=0)
    assert torch.equal(templates.beta[2:], first[2:])


def test_steepness_between_its_bounds_is_three_over_the_spread() -> None:
    n, unit = 7, 2 * 7 / 6
    x = torch.zeros(1, 1, n, n)
    x[0, 0, 3, 3], x[0, 0, 3, 1], x[0, 0, 3, 5] = 2, 0.8, 0.8  # spread sqrt(2 * 0.8 * 4 / 3.6) = 4/3
    templates = PartTemplates(n, n, 1, "per-filter")
    templates.adapt(x, torch.tensor([[True]]))
    assert templates.beta.item() == pytest.approx((2 + 0.016 * (3 / (4 / 3) - 2)) * unit, rel=1e-6)
    for _ in range(2000):
        templates.adapt(x, torch.tensor([[True]]))
    assert templates.beta.item() == pytest.approx(3 / (4 / 3) * unit, rel=1e-4)


def test_fixed_steepness_stays() -> None:
    templates = PartTemplates(5, 5, 4)
    before = maps(4)
    expected = templates.mask(before)
    templates.adapt(maps(5), torch.ones(6, 4, dtype=torch.bool))
    assert torch.equal(templates.mask(before), expected)
    assert not templates.state_dict()


def test_the_gain_is_what_a_template_in_the_middle_keeps_back() -> None:
    assert PartTemplates(8, 8, 1).gain == pytest.approx(64 / 3)  # 1 + 4 x 0.5
    own = PartTemplates(7, 7, 2, "per-filter")
    beta = float(own.beta[0])
    kept = np.maximum(oracles.part_template(7, (3, 3), beta), 0).sum()
    assert own.gain == pytest.approx(49 / kept, rel=1e-5)


class Masked(nn.Module):
    """A mask alone, with what it was given, as the exporter wants two outputs."""

    def __init__(self, templates: PartTemplates) -> None:
        super().__init__()
        self.templates = templates

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.templates.mask(x), self.templates.centres(x)


@pytest.mark.parametrize("beta", [4.0, "per-filter"])
@pytest.mark.parametrize("peak", ["argmax", "centroid"])
def test_torch_and_onnx_runtime_mask_alike(peak: str, beta: object) -> None:
    """On random, tied and empty maps, one picture or seven: the same centre and, to the bit, the same masked map."""
    masked = Masked(PartTemplates(6, 6, 4, beta, peak)).eval()
    session = open_session(quietly_export(masked, maps(shape=(2, 4, 6, 6))).model_proto.SerializeToString())
    tied = torch.randint(0, 3, (7, 4, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    for x in (maps(6, (7, 4, 6, 6)), maps(7, (1, 4, 6, 6)), tied, tied[:1], torch.zeros(7, 4, 6, 6)):
        map_, cell = session.run({"image": x.numpy()}).values()
        own, own_cell = masked(x)
        np.testing.assert_array_equal(cell, own_cell.numpy())
        np.testing.assert_array_equal(map_, own.numpy())
