from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyzers.parts import part_template
from analyzers.runtime import open_session
from tests.oracles import masked
from training.backbones import BACKBONES
from training.export import quietly_export
from training.filter_losses import FILTER_LOSSES
from training.interpretable import (
    InterpretableLayer,
    LayerError,
    WithMaps,
    interpretable_layers,
    keep_means,
    make_interpretable,
    recorded_maps,
)
from training.templates import part_templates

CLASSES = 3


def plain_net() -> nn.Module:
    """Convolutions, a pooling and a linear layer, as torchvision's AlexNet is built."""
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(8, 6, 3, 1, 1),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ),
            flatten=nn.Flatten(),
            classifier=nn.LazyLinear(CLASSES),
        )
    )


class Block(nn.Module):
    """A residual block that uses one ReLU twice, as torchvision's do, and adds in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.conv2(y)
        y += x
        return self.relu(y)


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.layer1 = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(8, CLASSES)
        self.unused = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer1(self.stem(x))
        return self.fc(y.mean((2, 3)))


def nested_net() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU())),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)),
    )


def built(make: Callable[[], nn.Module], size: tuple[int, int] = (16, 16)) -> tuple[nn.Module, Tensor]:
    """Build a network whose weights are drawn, and pictures for it."""
    torch.manual_seed(0)
    images = torch.rand(4, 3, *size)
    model = make().eval()
    with torch.no_grad():
        model(images)
    return model, images


def layer_alone(maps: Tensor, **options: object) -> InterpretableLayer:
    """Make a layer interpretable that passes on what it is given."""
    model = make_interpretable(nn.Sequential(nn.Identity()), "0", classes=CLASSES, example=maps, **options)
    return interpretable_layers(model)["0"]


NETS = [(plain_net, "features.3"), (ResidualNet, "layer1.1"), (ResidualNet, "layer1"), (nested_net, "0.1.1")]


# The mask.


def test_the_templates_of_a_square_map_are_the_paper_s() -> None:
    for side, beta in ((3, 4.0), (7, 4.0), (14, 1.7)):
        np.testing.assert_array_equal(part_templates(side, side, beta).numpy(), part_template(side, beta))


@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (6, 3), (1, 4)])
def test_the_templates_of_other_maps_fall_alike_in_both_directions(rows: int, columns: int) -> None:
    table = part_templates(rows, columns, 4.0).reshape(rows, columns, rows, columns)
    for p, q, i, j in np.ndindex(rows, columns, rows, columns):
        expected = max(1 - 4.0 * (abs(i - p) + abs(j - q)) / (rows * columns) ** 0.5, -1)
        assert float(table[p, q, i, j]) == pytest.approx(expected, abs=1e-6)


def test_the_masked_map_is_the_paper_s() -> None:
    maps = torch.relu(torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0)))
    maps[0, 0] = 0
    maps[0, 1] = 1  # the first of equal cells is the peak
    np.testing.assert_allclose(layer_alone(maps)(maps).numpy(), masked(maps.numpy()), atol=1e-6)


def test_a_layer_that_gives_negative_values_goes_through_a_relu_first() -> None:
    maps = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    maps[0, 0] = -1
    np.testing.assert_allclose(layer_alone(maps)(maps).numpy(), masked(maps.clamp(min=0).numpy()), atol=1e-6)


def test_the_template_can_sit_on_the_centre_of_mass() -> None:
    maps = torch.relu(torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(0)))
    maps[0, 0] = 0
    maps[0, 1] = 0
    maps[0, 1, 1, 2] = maps[0, 1, 2, 3] = 1  # row 1.5 and column 2.5 go up to 2 and 3
    x = maps.numpy()
    expected = np.zeros_like(x)
    templates = part_templates(4, 6).numpy()
    for b, k in np.ndindex(3, 4):
        row = column = 0.0
        for i, j in np.ndindex(4, 6):
            row += i * x[b, k, i, j] / max(x[b, k].sum(), 1e-9)
            column += j * x[b, k, i, j] / max(x[b, k].sum(), 1e-9)
        centre = int(row + 0.5) * 6 + int(column + 0.5)
        expected[b, k] = np.maximum(x[b, k] * templates[centre].reshape(4, 6), 0)
    assert expected[0, 1, 2, 3] == 1
    np.testing.assert_allclose(layer_alone(maps, peak="centroid")(maps).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
@pytest.mark.parametrize(("net", "layer"), NETS)
def test_a_mask_that_lets_everything_pass_leaves_the_logits(
    net: Callable[[], nn.Module], layer: str, size: tuple[int, int]
) -> None:
    model, images = built(net, size)
    before = model(images)
    make_interpretable(model, layer, classes=CLASSES, example=images, beta=0)
    assert torch.equal(model(images), before)


@pytest.mark.parametrize(("net", "layer"), NETS)
def test_what_follows_a_layer_sees_its_masked_map(net: Callable[[], nn.Module], layer: str) -> None:
    model, images = built(net)
    given = []
    model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: given.append(output.clone()))
    model(images)
    replaced, _ = built(net)
    expected = torch.from_numpy(masked(given[0].detach().numpy()))
    replaced.get_submodule(layer).register_forward_hook(lambda module, inputs, output: expected)
    make_interpretable(model, layer, classes=CLASSES, example=images)
    torch.testing.assert_close(model(images), replaced(images))


def test_the_mask_stands_before_the_pooling() -> None:
    model, images = built(plain_net)
    maps = model.features[:4](images)
    pooled = F.max_pool2d(torch.from_numpy(masked(maps.detach().numpy())), 2)
    expected = model.classifier(pooled.flatten(1))
    make_interpretable(model, "features.3", classes=CLASSES, example=images)
    torch.testing.assert_close(model(images), expected)


# The convolution that the paper adds, and several layers.


def test_an_added_convolution_starts_as_in_the_paper() -> None:
    model, images = built(ResidualNet)
    make_interpretable(model, "layer1", classes=CLASSES, example=images, filters=8)
    layer = interpretable_layers(model)["layer1"]
    assert layer.conv.weight.shape == (8, 8, 3, 3)
    assert layer.conv.weight.std().item() == pytest.approx(0.01, rel=0.15)
    assert not layer.conv.bias.any()
    y = torch.relu(layer.conv(layer.source(model.stem(images))))
    expected = model.fc(torch.from_numpy(masked(y.detach().numpy())).mean((2, 3)))
    torch.testing.assert_close(model(images), expected)


def test_a_number_of_filters_that_the_rest_cannot_take_is_refused_and_the_network_stays() -> None:
    model, images = built(ResidualNet)
    before = model(images)
    with pytest.raises(LayerError, match=r"what layer 'layer1' gives now .*; leave `filters` out or give 8"):
        make_interpretable(model, "layer1", classes=CLASSES, example=images, filters=5)
    assert not interpretable_layers(model)
    assert torch.equal(model(images), before)


def test_several_layers_can_be_interpretable() -> None:
    model, images = built(plain_net)
    make_interpretable(model, "features.1", classes=CLASSES, example=images)
    make_interpretable(model, "features.3", classes=CLASSES, example=images)
    logits, first, second = WithMaps(model)(images)
    assert (first.shape, second.shape) == ((4, 8, 8, 8), (4, 6, 8, 8))
    torch.testing.assert_close(logits, model(images))


def test_two_masks_in_a_row_have_the_paper_s_new_convolution_between_them() -> None:
    model, images = built(plain_net)
    make_interpretable(model, "features.3", classes=CLASSES, example=images)
    make_interpretable(model, "features.3", classes=CLASSES, example=images, filters=6)
    layers = interpretable_layers(model)
    assert list(layers) == ["features.3", "features.3.source"]
    with recorded_maps(model) as maps, torch.no_grad():
        model(images)
    outer, inner = layers.values()
    first = torch.from_numpy(masked(maps[inner].numpy()))
    torch.testing.assert_close(maps[outer], torch.relu(outer.conv(first)))


# The gain.


def masked_means(model: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return each layer's filter means before its mask, and of what it passes on."""
    passed: dict[str, Tensor] = {}
    layers = interpretable_layers(model)
    hooks = [
        layer.register_forward_hook(
            lambda module, given, output, name=name: passed.update({name: output.mean((0, 2, 3))})
        )
        for name, layer in layers.items()
    ]
    with recorded_maps(model) as maps, torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return {name: maps[layer].mean((0, 2, 3)) for name, layer in layers.items()}, passed


def test_with_its_gains_every_layer_passes_on_the_mean_of_its_whole_maps() -> None:
    model, images = built(plain_net)
    for layer in ("features.1", "features.3"):
        make_interpretable(model, layer, classes=CLASSES, example=images)
    make_interpretable(model, "features.3", classes=CLASSES, example=images, filters=6)  # a second mask behind it
    before, left = masked_means(model, images)
    assert all(bool((left[name] <= before[name]).all()) for name in left)
    assert any(float(left[name].sum()) < 0.9 * float(before[name].sum()) for name in left)
    keep_means(model, [images])
    means, passed = masked_means(model, images)
    assert len(means) == 3
    for name, mean in means.items():
        torch.testing.assert_close(passed[name], mean, rtol=1e-4, atol=1e-7)
    assert not model.training


def test_a_silent_filter_and_an_ordinary_layer_keep_a_gain_of_one() -> None:
    maps = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    maps[:, 1] = 0
    masked, ordinary = (
        make_interpretable(nn.Sequential(nn.Identity()), "0", classes=CLASSES, example=maps, masked=masked)
        for masked in (True, False)
    )
    for model in (masked, ordinary):
        keep_means(model, [maps])
    gain = interpretable_layers(masked)["0"].gain
    assert gain[1] == 1
    assert bool((gain[[0, 2]] > 1).all())
    assert bool((interpretable_layers(ordinary)["0"].gain == 1).all())
    assert torch.equal(ordinary(maps), maps)


# What the filter losses need.


def test_the_recorded_maps_are_those_before_the_mask_and_nothing_is_kept_afterwards() -> None:
    model, images = built(ResidualNet)
    expected = model.layer1(model.stem(images))
    make_interpretable(model, "layer1", classes=CLASSES, example=images)
    layer = interpretable_layers(model)["layer1"]
    with recorded_maps(model) as maps:
        model(images)
    assert list(maps) == [layer]
    assert torch.equal(maps[layer], expected)
    assert layer.recorder is None


@pytest.mark.parametrize("name", ["plain", "code", "paper", "mi", "groups"])
def test_the_filter_losses_reach_the_layers_below(name: str) -> None:
    model, images = built(ResidualNet, (16, 24))
    make_interpretable(model, "layer1.1", classes=CLASSES, example=images)
    layer = interpretable_layers(model)["layer1.1"]
    labels = torch.arange(4) % CLASSES
    logits, maps = WithMaps(model)(images)
    layer.state.observe(maps.detach(), labels)
    loss, _ = FILTER_LOSSES[name](maps, logits, labels, layer.state)
    loss.backward()
    assert model.stem[0].weight.grad.abs().sum() > 0


def test_gradients_flow_through_the_template_of_the_peak() -> None:
    maps = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer_alone(maps)(maps).sum().backward()
    peak = maps.detach().flatten(2).argmax(2)
    expected = torch.from_numpy(part_template(5)).clamp(min=0)[peak].reshape(maps.shape)
    torch.testing.assert_close(maps.grad, expected)


def test_a_network_learns_through_its_mask() -> None:
    model, images = built(nested_net)
    make_interpretable(model, "0.1.1", classes=CLASSES, example=images, filters=6)
    model.train()
    F.cross_entropy(model(images), torch.arange(4) % CLASSES).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


# The network is otherwise left alone.


def test_weights_statistics_and_modes_stay_as_they_were() -> None:
    model, images = built(ResidualNet)
    model.train()
    model.layer1[0].bn1.eval()  # frozen by its owner
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    make_interpretable(model, "layer1", classes=CLASSES, example=images)
    after = {name.replace("layer1.source", "layer1"): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    now = {name.replace("layer1.source", "layer1"): module.training for name, module in model.named_modules()}
    assert {name: now[name] for name in modes} == modes
    assert not interpretable_layers(model)["layer1"].source._forward_hooks


def test_the_weights_of_an_interpretable_network_can_be_saved_and_loaded() -> None:
    models = []
    for seed in (1, 2):
        model, images = built(nested_net)
        torch.manual_seed(seed)
        models.append(make_interpretable(model, "0.0", classes=CLASSES, example=images, filters=8))
    models[1].load_state_dict(models[0].state_dict())
    assert torch.equal(models[0](images), models[1](images))


@pytest.mark.parametrize("name", ["resnet20", "vgg-s", "densenet121"])
def test_a_backbone_in_torchvision_s_names_goes_in_as_it_is(name: str) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name]()
        model = nn.Sequential(
            OrderedDict(body=backbone, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.LazyLinear(9))
        )
        images = torch.zeros(1, 3, 96, 64)
    layer = {"resnet20": "body.layer3.2", "vgg-s": "body.features.12", "densenet121": "body.relu"}[name]
    make_interpretable(model, layer, classes=9, example=images)
    assert WithMaps(model)(images)[1].shape[1] == backbone.channels


# What cannot be done is refused in a sentence.


def test_an_unknown_layer_is_answered_with_the_nearest_names() -> None:
    model, images = built(ResidualNet)
    with pytest.raises(LayerError, match=r"no layer 'layer1.2'; the nearest names are layer1\.[01], layer1\.[01], lay"):
        make_interpretable(model, "layer1.2", classes=CLASSES, example=images)
    with pytest.raises(LayerError, match="the network has no layer ''"):
        make_interpretable(model, "", classes=CLASSES, example=images)


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ("fc", r"layer 'fc' gives \(4, 3\), expected maps \(batch, filters, rows, columns\)"),
        ("unused", "layer 'unused' runs 0 times in one pass"),
        ("layer1.0.relu", "layer 'layer1.0.relu' runs 2 times in one pass, expected once"),
    ],
)
def test_a_layer_that_gives_no_maps_or_not_once_is_refused(layer: str, sentence: str) -> None:
    model, images = built(ResidualNet)
    with pytest.raises(LayerError, match=sentence):
        make_interpretable(model, layer, classes=CLASSES, example=images)
    assert not interpretable_layers(model)


def test_a_layer_with_several_outputs_is_refused() -> None:
    with pytest.raises(LayerError, match="layer '0' gives tuple, expected maps"):
        make_interpretable(nn.Sequential(TwoOutputs()), "0", classes=CLASSES, example=torch.zeros(1, 3, 4, 4))


def test_maps_too_large_for_a_table_of_templates_are_refused() -> None:
    with pytest.raises(LayerError, match="maps of 4 x 65 cells, expected at most 64 in a row or column"):
        layer_alone(torch.zeros(1, 1, 4, 65))


def test_pictures_of_another_size_are_refused() -> None:
    model, images = built(nested_net)
    make_interpretable(model, "0.1.1", classes=CLASSES, example=images)
    with pytest.raises(
        LayerError, match="maps have 10 x 10 cells, expected 6 x 6; give pictures of the example's size"
    ):
        model(torch.rand(1, 3, 24, 24))


class Nosy(nn.Module):
    """A network that looks into its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) / self.conv.out_channels


def test_a_network_that_looks_into_the_layer_is_refused_and_stays() -> None:
    model, images = Nosy(), torch.rand(1, 3, 8, 8)
    with pytest.raises(LayerError, match=r"cannot go on from what layer 'conv' gives now .*; name the block around it"):
        make_interpretable(model, "conv", classes=CLASSES, example=images)
    model(images)


# Export.


@pytest.mark.parametrize("peak", ["argmax", "centroid"])
def test_torch_and_onnx_runtime_agree_on_logits_and_maps(peak: str) -> None:
    model, images = built(ResidualNet, (16, 24))
    make_interpretable(model, "layer1.0", classes=CLASSES, example=images, peak=peak)
    make_interpretable(model, "layer1.1", classes=CLASSES, example=images, filters=8, peak=peak)
    with_maps = WithMaps(model).eval()
    session = open_session(quietly_export(with_maps, images).model_proto.SerializeToString())
    assert all(layer.recorder is None for layer in interpretable_layers(model).values())
    for batch in (images[:1], torch.cat([images, torch.zeros_like(images), torch.ones_like(images)])):
        with torch.no_grad():
            expected = with_maps(batch)
        answer = session.run({"image": batch.numpy()})
        assert len(answer) == len(expected) == 3
        for own, other in zip(expected, answer.values(), strict=True):
            np.testing.assert_allclose(own.numpy(), other, atol=1e-5)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_can_be_traced_with_a_free_batch_axis(wrapped: bool) -> None:
    model, images = built(nested_net)
    make_interpretable(model, "0.1.1", classes=CLASSES, example=images)
    traced = WithMaps(model) if wrapped else model
    program = torch.export.export(traced, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.rand(7, 3, 16, 16)
    torch.testing.assert_close(program.module()(more), traced(more))
