"""Which layers of a network are masked, and one category against the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import oracles
from training.backbones import BACKBONES
from training.interpretable import LayerError, interpretable_layers
from training.network import Network

CLASSES, SIZE = 3, 32


def network(**options: object) -> Network:
    torch.manual_seed(0)
    return Network(BACKBONES["resnet20"](), CLASSES, size=SIZE, **options).eval()


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["layer3", "layer3.2"])
def test_the_map_that_the_backbone_ends_in_is_masked_and_reported_unmasked(name: str) -> None:
    masked, ordinary = network(layers=(name,)), network()
    with torch.no_grad():
        maps = ordinary.map(images())
        assert torch.equal(masked.map(images()), maps)
        pooled = torch.from_numpy(oracles.masked(maps.numpy())).mean((2, 3))
        torch.testing.assert_close(masked.pooled(maps), pooled)
    assert not interpretable_layers(masked.backbone)
    assert masked.parts is not None
    assert masked.head.gain == masked.parts.gain > 1
    assert set(ordinary.state_dict()) <= set(masked.state_dict())


def test_behind_an_added_convolution_the_backbone_s_last_layer_is_an_inner_one() -> None:
    both = network(layers=("layer3",), filters=5)
    assert list(interpretable_layers(both.backbone)) == ["layer3"]
    assert [state.scale.shape[0] for state in both.states] == [64, 5]


def test_all_interpretable_layers_give_their_maps_before_the_mask() -> None:
    net, pictures = network(layers=("layer1", "layer2", "layer3")), images()
    with torch.no_grad():
        logits, maps = net.with_all_maps(pictures)
        assert torch.equal(logits, net(pictures)[0])
        below = net.backbone.relu(net.backbone.bn1(net.backbone.conv1((pictures - net.mean) / net.std)))
        first = net.backbone.layer1.source(below)
        second = net.backbone.layer2.source(torch.from_numpy(oracles.masked(first.numpy())))
    assert [state for state, _ in maps] == net.states
    assert [tuple(x.shape[1:]) for _, x in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    torch.testing.assert_close(maps[0][1], first)
    torch.testing.assert_close(maps[1][1], second)
    torch.testing.assert_close(maps[2][1], net.map(pictures))


def test_the_ordinary_network_to_compare_with_has_the_same_tensors_and_no_mask() -> None:
    layers = ("layer2", "layer3")
    masked, ordinary, bare = network(layers=layers), network(layers=layers, masked=False), network()
    assert masked.state_dict().keys() == ordinary.state_dict().keys()
    ordinary.head.load_state_dict(bare.head.state_dict())
    with torch.no_grad():
        assert torch.equal(ordinary(images())[0], bare(images())[0])
        assert not torch.equal(masked.map(images()), bare.map(images()))


def test_a_layer_that_is_not_there_is_answered_with_the_nearest() -> None:
    with pytest.raises(LayerError, match=r"no layer 'layer4'; the nearest names are layer"):
        network(layers=("layer4",))


def test_a_category_stands_against_a_logit_of_zero_whatever_was_learned() -> None:
    torch.manual_seed(0)
    net = Network(BACKBONES["resnet20"](), 2, size=SIZE, filters=6, layers=("layer2",), against_rest=True).eval()
    with torch.no_grad():
        net.head.weight += 1
        net.head.bias += 1
    logits, _ = net(images())
    assert not logits[:, 0].any()
    assert bool(logits[:, 1].all())
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
    expected = oracles.logistic_loss(logits[:, 1:].detach().numpy(), np.array([[False], [True]]))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert not net.head.weight.grad[0].any()
    assert not net.head.bias.grad[0]
    assert all(bool((state.learned_for == 1).all()) for state in net.states)  # every filter is the category's
    net.head.decompose(np.array([[0, 1], [2, 3]]))
    assert not net.head.head().weight[0].any()
