"""Filter losses, against the literal equations and the laws they obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests import oracles
from training.filter_losses import (
    FILTER_LOSSES,
    FilterState,
    code,
    gates,
    groups,
    mi,
    mutual_information,
    paper,
    plain,
)
from training.templates import PartTemplates

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
LOGITS = torch.zeros(6, 3)
DOUBLE = torch.float64


def maps(seed: int = 0, batch: int = 6, filters: int = 4, cells: int = 5) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(np.maximum(random.normal(0, 1, (batch, filters, cells, cells)), 0))


def state(filters: int = 4, cells: int = 5, classes: int = 3) -> FilterState:
    made = FilterState(filters, PartTemplates(cells, cells, filters), classes).to(DOUBLE)
    made.scale.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0])[:filters])
    made.response.copy_(torch.eye(filters, classes) + 0.1)
    made.class_share.copy_(torch.tensor([0.5, 0.3, 0.2])[:classes])
    made.classify = lambda x: x.mean((2, 3))[:, :classes]
    return made


def unscaled(filters: int, cells: int) -> FilterState:
    made = FilterState(filters, PartTemplates(cells, cells, filters), 3).to(DOUBLE)
    made.response.copy_(torch.eye(filters, 3) + 0.1)
    return made


@pytest.mark.parametrize("name", FILTER_LOSSES)
def test_every_loss_keeps_the_one_interface(name: str) -> None:
    x, before = maps().requires_grad_(), state()
    loss, after = FILTER_LOSSES[name](x, LOGITS, LABELS, before)
    loss.backward()
    assert loss.ndim == 0
    assert after is before
    assert bool(torch.isfinite(x.grad).all())
    assert bool(x.grad.any())


@pytest.mark.parametrize("name", sorted(set(FILTER_LOSSES) - {"gates"}))
def test_a_loss_does_not_change_with_the_scale_of_the_layer(name: str) -> None:
    small, large = state(), state()
    large.scale.mul_(1000)
    a, _ = FILTER_LOSSES[name](maps(), LOGITS, LABELS, small)
    b, _ = FILTER_LOSSES[name](maps() * 1000, LOGITS, LABELS, large)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", sorted(set(FILTER_LOSSES) - {"gates"}))
@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_huge_activations_overflow_nothing(name: str, scale: float) -> None:
    x = (maps() * scale).float().requires_grad_()
    loss, _ = FILTER_LOSSES[name](x, LOGITS, LABELS, unscaled(4, 5).float())
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("name", FILTER_LOSSES)
def test_where_the_layer_is_silent_its_input_gets_no_gradient(name: str) -> None:
    before = torch.randn(6, 4, 5, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, _ = FILTER_LOSSES[name](torch.relu(before), LOGITS, LABELS, state())
    loss.backward()
    assert not before.grad[before.detach() < 0].any()


def test_plain_is_its_equation() -> None:
    s = state()
    expected = oracles.plain_filter_loss(
        maps().numpy(), LABELS.numpy(), s.learned_for.numpy(), s.scale.numpy(), s.class_share.numpy()
    )
    assert plain(maps(), LOGITS, LABELS, s)[0].item() == pytest.approx(expected, rel=1e-6)


def test_plain_pulls_to_the_peak_on_own_pictures_and_down_on_others() -> None:
    s = FilterState(1, PartTemplates(5, 5, 1), 3).to(DOUBLE)
    s.response.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
    s.class_share.fill_(1 / 3)
    x = maps(6, batch=2, filters=1).requires_grad_()
    plain(x, LOGITS, torch.tensor([0, 1]), s)[0].backward()
    template = s.templates.table[x[0, 0].detach().flatten().argmax()].reshape(5, 5)
    torch.testing.assert_close(x.grad[0, 0], -template * 1.5 / 2)
    assert bool((x.grad[1] > 0).all())


@pytest.mark.parametrize("name", ["plain", "code"])
def test_push_scales_what_pictures_of_other_classes_do_and_nothing_else(name: str) -> None:
    gradients = {}
    for push in (0.0, 0.25, 1.0):
        s, x = state(), maps(2).requires_grad_()
        s.push = push
        FILTER_LOSSES[name](x, LOGITS, LABELS, s)[0].backward()
        gradients[push] = x.grad
    own = state().own(LABELS)
    assert torch.equal(gradients[0.25][own], gradients[1.0][own])
    torch.testing.assert_close(gradients[0.25][~own], 0.25 * gradients[1.0][~own])
    assert not gradients[0.0][~own].any()
    assert gradients[1.0][~own].any()


def test_the_released_code_s_weights_have_mean_one_and_pull_along_the_template() -> None:
    s = unscaled(4, 5)
    s.class_share.fill_(1 / 3)
    x = maps(2).requires_grad_()
    code(x, LOGITS, LABELS, s)[0].backward()
    positive, _ = s.balance()
    weights = []
    for b in range(6):
        for k in range(4):
            peak = x[b, k].detach().flatten().argmax()
            template = s.templates.table[peak].reshape(5, 5)
            if s.own(LABELS)[b, k]:
                along = -(x.grad[b, k] / template)[template != 0] * 24 / positive[k]
                torch.testing.assert_close(along, along[0].expand_as(along))
                weights.append((k, along[0].item()))
            else:
                assert bool((x.grad[b, k] >= 0).all())
    for k in range(4):
        own = [w for filter_, w in weights if filter_ == k]
        assert min(own) >= 0
        assert sum(own) == pytest.approx(len(own))


def test_the_gradient_of_code_is_the_released_code_s() -> None:
    s, x = state(), maps(2).requires_grad_()
    code(x, LOGITS, LABELS, s)[0].backward()
    expected = oracles.code_filter_gradient(
        x.detach().numpy(), LABELS.numpy(), s.learned_for.numpy(), s.scale.numpy(), s.class_share.numpy()
    )
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6, atol=1e-12)
    others = x.grad[~s.own(LABELS)]
    assert bool((others == others[:, :1, :1]).all())  # the same push in every cell
    assert bool((others >= 0).all())


def test_mi_is_its_equation_and_its_entropy_form() -> None:
    x = maps(3, batch=4, filters=2, cells=3)
    expected = [oracles.mutual_information_loss(x[:, k].numpy()) for k in range(2)]
    assert mi(x, LOGITS, LABELS[:4], unscaled(2, 3))[0].item() == pytest.approx(np.mean(expected), abs=1e-8)
    for k in range(2):
        assert oracles.entropy_form(x[:, k].numpy()) == pytest.approx(expected[k], abs=1e-12)


def test_mi_is_zero_where_maps_say_nothing_and_never_below_its_bound() -> None:
    s = unscaled(4, 5)
    assert mi(torch.zeros(6, 4, 5, 5, dtype=DOUBLE), LOGITS, LABELS, s)[0].item() == pytest.approx(0, abs=1e-12)
    same = maps(4, batch=1).expand(6, -1, -1, -1)
    assert mi(same, LOGITS, LABELS, s)[0].item() == pytest.approx(0, abs=1e-12)
    assert mi(maps(5) * 100, LOGITS, LABELS, s)[0].item() >= -min(math.log(6), math.log(26)) - 1e-9


def test_without_any_information_nothing_is_left_but_the_entropy_of_the_templates() -> None:
    """H(T) = log(n^2 + 1), with the paper's alpha = n^2 / (1 + n^2): all templates have one prior."""
    n = 3
    alpha = n**2 / (1 + n**2)
    prior = np.array([alpha / n**2] * n**2 + [1 - alpha])
    assert -(prior * np.log(prior)).sum() == pytest.approx(math.log(n**2 + 1), abs=1e-12)
    far = torch.full((n**2 + 1, 1, n**2 + 1), -1e3, dtype=DOUBLE)
    far[:, 0] += torch.eye(n**2 + 1, dtype=DOUBLE) * 2e3  # each picture fits one template
    assert mutual_information(far).item() == pytest.approx(math.log(n**2 + 1), abs=1e-12)


def test_mi_does_not_change_when_all_scores_of_one_template_grow() -> None:
    scores = torch.randn(6, 4, 26, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    shifted = scores + 5 * torch.nn.functional.one_hot(torch.tensor(7), 26)
    torch.testing.assert_close(mutual_information(shifted), mutual_information(scores), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(mutual_information(scores * 1.1), mutual_information(scores))


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x.flip(3),
        lambda x: x.rot90(1, (2, 3)),
        lambda x: x.transpose(2, 3),
        lambda x: x[[3, 0, 5, 1, 4, 2]],
    ],
)
def test_mi_does_not_change_under_flips_rotations_and_permutations(turn: object) -> None:
    s = unscaled(4, 5)
    assert mi(turn(maps()), LOGITS, LABELS, s)[0].item() == pytest.approx(
        mi(maps(), LOGITS, LABELS, s)[0].item(), abs=1e-12
    )


def test_the_gradients_of_mi_are_the_paper_s_formulas_and_the_slopes_of_the_loss() -> None:
    """Central differences with steps of 1e-6: of the loss, and of the loss with Z held at its value."""
    x = maps(6, batch=4, filters=1, cells=3)
    s = unscaled(1, 3)
    leaf = x.clone().requires_grad_()
    mi(leaf, LOGITS, LABELS[:4], s)[0].backward()
    one = x[:, 0].numpy()
    np.testing.assert_allclose(
        leaf.grad[:, 0].numpy(), oracles.mutual_information_gradient(one, z_constant=False), rtol=1e-5, atol=1e-9
    )
    templates = np.concatenate([s.templates.table.numpy(), -np.ones((1, 9))])
    z = np.exp(one.reshape(4, 9) @ templates.T).sum(0)

    def loss_at_constant_z(maps: np.ndarray) -> float:
        p = np.exp(maps.reshape(4, 9) @ templates.T) / z
        return -float((p * (np.log(p) - np.log(p.mean(1, keepdims=True)))).sum() / 10)

    slopes, slopes_at_constant_z = np.zeros_like(one), np.zeros_like(one)
    for place in np.ndindex(one.shape):
        step = np.zeros_like(one)
        step[place] = 1e-6
        up, down = (mi(torch.from_numpy((one + d)[:, None]), LOGITS, LABELS[:4], s)[0].item() for d in (step, -step))
        slopes[place] = (up - down) / 2e-6
        slopes_at_constant_z[place] = (loss_at_constant_z(one + step) - loss_at_constant_z(one - step)) / 2e-6
    np.testing.assert_allclose(leaf.grad[:, 0].numpy(), slopes, rtol=1e-4, atol=1e-9)
    at_constant_z = oracles.mutual_information_gradient(one, z_constant=True)
    np.testing.assert_allclose(at_constant_z, slopes_at_constant_z, rtol=1e-4, atol=1e-9)
    assert abs(at_constant_z - slopes).max() > 1e-3  # the two are not the same


def test_the_gradient_of_mi_is_the_paper_s_exact_formula() -> None:
    x = maps(6, batch=4, filters=1, cells=3).requires_grad_()
    s = unscaled(1, 3)
    mi(x, LOGITS, LABELS[:4], s)[0].backward()
    templates = torch.cat([s.templates.table, -torch.ones(1, 9, dtype=DOUBLE)])
    score = x.detach()[:, 0].flatten(1) @ templates.T
    p = torch.softmax(score, 0)  # p(x_b | T_t)
    log_ratio = torch.log(p) - torch.log(p.mean(1, keepdim=True))
    divergence = (p * log_ratio).sum(0)
    expected = -(p / 10 * (log_ratio - divergence)) @ templates  # section 3, Z differentiated
    torch.testing.assert_close(x.grad[:, 0].flatten(1), expected, rtol=1e-9, atol=1e-14)


def test_paper_is_eq_4_with_the_right_sign() -> None:
    x = maps(7, batch=4, filters=1, cells=3).requires_grad_()
    s = unscaled(1, 3)
    labels = torch.tensor([0, 1, 0, 2])
    paper(x, LOGITS, labels, s)[0].backward()
    templates = torch.cat([s.templates.table, -torch.ones(1, 9, dtype=DOUBLE)])
    flat = x.detach()[:, 0].flatten(1)
    score = flat @ templates.T
    p = torch.softmax(score, 0)
    for b in range(4):
        t = int(flat[b].argmax()) if labels[b] == 0 else 9
        weight = 4 * p[b, t] / 10 * (torch.log(p[b, t]) - torch.log(p[b].mean())).clamp(min=0)
        torch.testing.assert_close(x.grad[b, 0].flatten(), -weight * templates[t] / 4, rtol=1e-9, atol=1e-14)


def test_templates_sit_where_the_layer_s_mask_sits() -> None:
    """Two peaks and the centre of mass between them: the losses pull towards what the mask lets pass."""
    x = torch.zeros(2, 1, 5, 5, dtype=DOUBLE)
    x[:, 0, 2, 0] = x[:, 0, 2, 4] = 1.0
    for name, loss in {"plain": plain, "code": code, "paper": paper}.items():
        for peak, column in {"argmax": 0, "centroid": 2}.items():
            s = FilterState(1, PartTemplates(5, 5, 1, peak=peak), 3).to(DOUBLE)
            s.response.copy_(torch.tensor([[1.0, 0, 0]]))
            leaf = (x * torch.tensor([[1.0], [2.0]], dtype=DOUBLE)[:, :, None, None]).requires_grad_()
            loss(leaf, LOGITS, torch.tensor([0, 0]), s)[0].backward()
            pulled = -leaf.grad[1, 0] / leaf.grad[1, 0].abs().max()
            template = torch.from_numpy(oracles.part_template(5, (2, column)))
            torch.testing.assert_close(pulled, template, atol=1e-6, rtol=1e-6, msg=f"{name}, {peak}")


@pytest.mark.parametrize("name", ["plain", "paper", "mi"])  # in `code` other filters' templates estimate Z
def test_filters_of_different_steepness_have_the_loss_of_their_own_templates(name: str) -> None:
    x, betas = maps(3), torch.tensor([3.5, 4.0, 5.0, 6.5], dtype=DOUBLE)
    together = FilterState(4, PartTemplates(5, 5, 4, "per-filter"), 3).to(DOUBLE)
    together.response.copy_(torch.eye(4, 3) + 0.1)
    together.templates.beta.copy_(betas)
    alone = []
    for k, beta in enumerate(betas.tolist()):
        s = FilterState(4, PartTemplates(5, 5, 4, beta), 3).to(DOUBLE)
        s.response.copy_(torch.eye(4, 3) + 0.1)
        leaf = x.clone().requires_grad_()
        FILTER_LOSSES[name](leaf, LOGITS, LABELS, s)[0].backward()
        alone.append(leaf.grad[:, k])
    leaf = x.clone().requires_grad_()
    FILTER_LOSSES[name](leaf, LOGITS, LABELS, together)[0].backward()
    torch.testing.assert_close(leaf.grad, torch.stack(alone, 1), rtol=1e-5, atol=1e-8)


def test_gates_close_filters_that_their_class_does_not_need() -> None:
    s = state()
    s.gate.requires_grad_()
    x = maps(8).requires_grad_()
    gates(x, LOGITS, LABELS, s)[0].backward()
    assert s.gate.grad.shape == (4, 3)
    closed = state()
    closed.gate.zero_()
    uniform = gates(x, LOGITS, LABELS, closed)[0].item()
    assert uniform == pytest.approx(math.log(3))  # nothing passes, so nothing is known


def test_groups_prefer_small_regions() -> None:
    s = unscaled(4, 5)
    small = torch.zeros(6, 4, 5, 5, dtype=DOUBLE)
    small[:, :, 2, 2] = 1.0
    wide = torch.zeros(6, 4, 5, 5, dtype=DOUBLE)
    wide[:, :, ::4, ::4] = 1.0
    assert groups(small, LOGITS, LABELS, s)[0] < groups(wide, LOGITS, LABELS, s)[0]


def test_a_filter_that_fires_on_one_class_is_learned_for_that_class() -> None:
    s = FilterState(2, PartTemplates(5, 5, 2), 3)
    for _ in range(50):
        x = torch.zeros(3, 2, 5, 5)
        x[2, 0, 1, 1], x[1, 1, 3, 3] = 4.0, 2.0
        s.observe(x, torch.tensor([0, 1, 2]))
    assert s.learned_for.tolist() == [2, 1]


def test_scales_converge_to_the_mean_peak_and_responses_to_the_class_means() -> None:
    s, x = FilterState(4, PartTemplates(5, 5, 4), 3).to(DOUBLE), maps(9)
    for _ in range(400):
        s.observe(x, LABELS)
    peak = x.flatten(2).amax(2)
    torch.testing.assert_close(s.scale, peak.mean(0), rtol=1e-6, atol=1e-6)
    expected = torch.stack([peak[c::3].mean(0) for c in range(3)], 1) / peak.mean(0)[:, None]
    torch.testing.assert_close(s.response, expected, rtol=1e-5, atol=1e-5)


def test_labels_may_be_many_or_a_single_category() -> None:
    s = state()
    many = torch.nn.functional.one_hot(LABELS, 3)
    assert plain(maps(), LOGITS, many, s)[0].item() == plain(maps(), LOGITS, LABELS, s)[0].item()
    single = FilterState(4, PartTemplates(5, 5, 4), 1)
    assert single.own(torch.tensor([1, 0])).tolist() == [[True] * 4, [False] * 4]


def test_filters_are_shared_out_evenly_to_the_classes_they_respond_to() -> None:
    s = FilterState(6, PartTemplates(5, 5, 6), 3)
    s.response.copy_(torch.tensor([[9, 0, 0], [8, 0, 0], [7, 6, 0], [6, 0, 5], [0, 1, 0], [0, 0, 1]]).float())
    s.share_out()
    assert s.learned_for.tolist() == [0, 0, 1, 2, 1, 2]
