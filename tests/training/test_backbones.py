from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones import (
    BACKBONES,
    BasicBlock,
    Bottleneck,
    Conv,
    Stage,
    densenet,
    load_backbone,
    residual,
    split_checkpoint,
)
from training.network import Network

ALEXNET_CLASSIFIER = {"1": (4096, 9216), "4": (4096, 4096), "6": (1000, 4096)}
VGG16_CLASSIFIER = {"0": (4096, 25088), "3": (4096, 4096), "6": (1000, 4096)}
VGG_MS_CLASSIFIER = {"0": (4096, 18432), "3": (4096, 4096), "6": (1000, 4096)}

# What a checkpoint of each network holds behind the backbone: its name, and the weights of its layers.
CLASSIFIER = {
    "alexnet": ("classifier", ALEXNET_CLASSIFIER),
    "vgg16": ("classifier", VGG16_CLASSIFIER),
    "vgg-m": ("classif", VGG_MS_CLASSIFIER),
    "vgg-s": ("classifier", VGG_MS_CLASSIFIER),
    "resnet18": ("fc", {"": (1000, 512)}),
    "resnet34": ("fc", {"": (1000, 512)}),
    "resnet50": ("fc", {"": (1000, 2048)}),
    "densenet121": ("classifier", {"": (1000, 1024)}),
}

# Of torchvision; VGG-M and VGG-S are listed at 393 MB (albanie/convnet-burden), which is 102,908,520 float32 numbers.
PUBLISHED_SIZE = {
    "alexnet": 61_100_840,
    "vgg16": 138_357_544,
    "vgg-m": 102_908_520,
    "vgg-s": 102_908_520,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "densenet121": 7_978_856,
}


def on_meta(name: str) -> nn.Module:
    """Build a backbone without memory: shapes only."""
    with torch.device("meta"):
        return BACKBONES[name]().eval()


def checkpoint_of(name: str) -> dict[str, Tensor]:
    """Return a checkpoint as its publisher writes it, shapes only."""
    prefix, layers = CLASSIFIER[name]
    tensors = dict(on_meta(name).state_dict())
    for number, (outputs, inputs) in layers.items():
        layer = f"{prefix}.{number}" if number else prefix
        tensors[f"{layer}.weight"] = torch.empty(outputs, inputs, device="meta")
        tensors[f"{layer}.bias"] = torch.empty(outputs, device="meta")
    return tensors


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("small", 64, (128, 8, 8)),
        ("small-stride4", 64, (128, 16, 16)),
        ("resnet20", 32, (64, 8, 8)),
        ("resnet32", 32, (64, 8, 8)),
        ("resnet56", 32, (64, 8, 8)),
        ("resnet18", 224, (512, 7, 7)),
        ("resnet18-stride16", 224, (512, 14, 14)),
        ("resnet34", 224, (512, 7, 7)),
        ("resnet34-stride16", 224, (512, 14, 14)),
        ("resnet50", 224, (2048, 7, 7)),
        ("resnet50-stride16", 224, (2048, 14, 14)),
        ("densenet121", 224, (1024, 7, 7)),
        ("alexnet", 224, (256, 13, 13)),
        ("alexnet", 227, (256, 13, 13)),
        ("vgg16", 224, (512, 14, 14)),
        ("vgg-m", 224, (512, 13, 13)),  # the grids that the interpretable CNNs' released code works on
        ("vgg-s", 224, (512, 17, 17)),
    ],
)
def test_a_backbone_ends_in_the_map_it_promises(name: str, size: int, shape: tuple[int, ...]) -> None:
    backbone = on_meta(name)
    assert tuple(backbone(torch.zeros(1, 3, size, size, device="meta")).shape[1:]) == shape
    assert backbone.channels == shape[0]


@pytest.mark.parametrize("name", PUBLISHED_SIZE)
def test_a_backbone_and_its_classifier_have_the_published_number_of_weights(name: str) -> None:
    learned = {name for name, _ in on_meta(name).named_parameters()}
    tensors = checkpoint_of(name)
    behind = set(tensors) - set(on_meta(name).state_dict())
    assert sum(tensors[tensor].numel() for tensor in learned | behind) == PUBLISHED_SIZE[name]


@pytest.mark.parametrize(
    ("name", "tensor", "shape"),
    [
        ("alexnet", "features.3.weight", (192, 64, 5, 5)),
        ("alexnet", "features.10.bias", (256,)),
        ("vgg16", "features.7.weight", (128, 128, 3, 3)),
        ("vgg16", "features.28.weight", (512, 512, 3, 3)),
        ("vgg-m", "features.4.weight", (256, 96, 5, 5)),
        ("vgg-m", "features.12.weight", (512, 512, 3, 3)),
        ("vgg-s", "features.4.weight", (256, 96, 5, 5)),
        ("vgg-s", "features.11.weight", (512, 512, 3, 3)),
        ("resnet34", "layer3.5.conv2.weight", (256, 256, 3, 3)),
        ("resnet50", "layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        ("resnet50", "layer1.0.downsample.1.running_var", (256,)),
        ("resnet50", "layer2.0.conv2.weight", (128, 128, 3, 3)),
        ("resnet50", "layer4.2.conv3.weight", (2048, 512, 1, 1)),
        ("densenet121", "features.conv0.weight", (64, 3, 7, 7)),
        ("densenet121", "features.denseblock1.denselayer6.norm1.weight", (224,)),
        ("densenet121", "features.denseblock4.denselayer16.conv2.weight", (32, 128, 3, 3)),
        ("densenet121", "features.transition3.conv.weight", (512, 1024, 1, 1)),
        ("densenet121", "features.norm5.running_mean", (1024,)),
    ],
)
def test_weights_have_their_usual_names(name: str, tensor: str, shape: tuple[int, ...]) -> None:
    assert tuple(on_meta(name).state_dict()[tensor].shape) == shape


@pytest.mark.parametrize(
    ("name", "count"),  # torchvision's, with its classifier
    [("alexnet", 16), ("vgg16", 32), ("resnet18", 122), ("resnet34", 218), ("resnet50", 320), ("densenet121", 727)],
)
def test_a_checkpoint_has_torchvision_s_number_of_tensors(name: str, count: int) -> None:
    assert len(checkpoint_of(name)) == count


@pytest.mark.parametrize("name", CLASSIFIER)
def test_a_checkpoint_with_its_classifier_loads(name: str) -> None:
    backbone, head = split_checkpoint(checkpoint_of(name))
    load_backbone(on_meta(name), backbone)
    layers = CLASSIFIER[name][1]
    expected = {f"{number}.weight" if number else "weight": shape for number, shape in layers.items()}
    assert {name: tuple(t.shape) for name, t in head.items() if name.endswith("weight")} == expected


def test_densenet_loads_under_the_names_of_torchvision_s_old_checkpoints() -> None:
    source, other = densenet((2, 2), growth=4, width=8).eval(), densenet((2, 2), growth=4, width=8).eval()
    old = {
        re.sub(r"(denselayer\d\.)(norm|conv)([12])", r"\1\2.\3", name): tensor
        for name, tensor in source.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert {"features.denseblock1.denselayer1.norm.1.running_mean", "features.transition1.conv.weight"} <= set(old)
    backbone, head = split_checkpoint(old | {"classifier.weight": torch.ones(3, 16), "classifier.bias": torch.ones(3)})
    load_backbone(other, backbone)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(source(x), other(x))
    assert set(head) == {"weight", "bias"}


def test_resnet20_has_the_published_size() -> None:
    network = Network(BACKBONES["resnet20"](), 10, size=32)
    assert sum(p.numel() for p in network.parameters()) == 269_722


def test_a_prefixed_checkpoint_is_split_into_backbone_and_head() -> None:
    source = BACKBONES["resnet20"]()
    tensors = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    tensors |= {"module.linear.weight": torch.ones(10, 64), "module.linear.bias": torch.zeros(10)}
    backbone, head = split_checkpoint(tensors)
    load_backbone(BACKBONES["resnet20"](), backbone)
    assert {name: tuple(t.shape) for name, t in head.items()} == {"weight": (10, 64), "bias": (10,)}


def test_weights_that_do_not_fit_are_named() -> None:
    tensors = BACKBONES["resnet32"]().state_dict()
    del tensors["conv1.weight"]
    tensors["bn1.weight"] = torch.ones(17)
    with pytest.raises(ValueError, match=r"bn1.weight has shape \[17\], expected \[16\].*conv1.weight is missing"):
        load_backbone(BACKBONES["resnet20"](), tensors)


# The forward passes once more, written out from the papers' figures, reading weights by torchvision's names.


class Written:
    """Layers that read a state dict by name."""

    def __init__(self, network: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, tensor in network.state_dict().items():
            if tensor.ndim == 1 and tensor.is_floating_point():  # norms that are not the identity
                lowest = 0.5 if name.endswith(("weight", "running_var")) else -0.5
                tensor.copy_(lowest + torch.rand(tensor.shape, generator=generator))
        self.tensors = network.state_dict()

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        bias = self.tensors.get(f"{name}.bias")
        return F.conv2d(x, self.tensors[f"{name}.weight"], bias, stride, padding)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.tensors[f"{name}.{kind}"][:, None, None] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def agree(network: nn.Module, x: Tensor, expected: Tensor) -> bool:
    assert 0.1 < (expected > 0).float().mean() < 1
    with torch.no_grad():
        return torch.allclose(network(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_residual_networks_compute_what_the_paper_draws(block: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = residual(block, Conv(8, 7, 2), [Stage(16, 2, 1), Stage(32, 2)], pooled=True).eval()
    w, x = Written(network), torch.rand(2, 3, 40, 40)
    y = F.max_pool2d(w.norm(w.conv(x, "conv1", 2, 3), "bn1").relu(), 3, 2, 1)
    for name, stride in (("layer1.0", 1), ("layer1.1", 1), ("layer2.0", 2), ("layer2.1", 1)):
        shortcut = y
        if name.endswith(".0"):
            shortcut = w.norm(w.conv(y, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        if block is BasicBlock:
            y = w.norm(w.conv(y, f"{name}.conv1", stride, 1), f"{name}.bn1").relu()
            y = w.norm(w.conv(y, f"{name}.conv2", 1, 1), f"{name}.bn2")
        else:
            y = w.norm(w.conv(y, f"{name}.conv1"), f"{name}.bn1").relu()
            y = w.norm(w.conv(y, f"{name}.conv2", stride, 1), f"{name}.bn2").relu()
            y = w.norm(w.conv(y, f"{name}.conv3"), f"{name}.bn3")
        y = (y + shortcut).relu()
    assert agree(network, x, y)


def test_a_densely_connected_network_computes_what_the_paper_draws() -> None:
    torch.manual_seed(0)
    network = densenet((2, 3), growth=4, width=8).eval()
    w, x = Written(network), torch.rand(2, 3, 40, 40)
    y = F.max_pool2d(w.norm(w.conv(x, "features.conv0", 2, 3), "features.norm0").relu(), 3, 2, 1)
    for block, layers in ((1, 2), (2, 3)):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            new = w.conv(w.norm(y, f"{name}.norm1").relu(), f"{name}.conv1")
            y = torch.cat([y, w.conv(w.norm(new, f"{name}.norm2").relu(), f"{name}.conv2", 1, 1)], 1)
        if block == 1:
            y = w.conv(w.norm(y, "features.transition1.norm").relu(), "features.transition1.conv")
            y = F.avg_pool2d(y, 2)
    assert agree(network, x, w.norm(y, "features.norm5").relu())


def caffe_pool(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Max pooling that also pools what is left at the border."""
    short = -(x.shape[2] - kernel) % stride
    return F.max_pool2d(F.pad(x, (0, short, 0, short), value=float("-inf")), kernel, stride)


def caffe_norm(x: Tensor) -> Tensor:
    """x_k / (2 + 5e-4 / 5 sum of x^2 over the five filters round k)^0.75."""
    squares = F.pad(x**2, (0, 0, 0, 0, 2, 2))
    return x / (2 + 1e-4 * sum(squares[:, k : k + x.shape[1]] for k in range(5))) ** 0.75


@pytest.mark.parametrize("name", ["vgg-m", "vgg-s"])
def test_vgg_m_and_s_compute_what_their_paper_lists(name: str) -> None:
    torch.manual_seed(0)
    network = BACKBONES[name]().eval()
    w, x = Written(network), 50 * torch.rand(1, 3, 64, 64)
    y = caffe_norm(w.conv(x, "features.0", 2).relu())
    if name == "vgg-m":
        y = caffe_norm(w.conv(caffe_pool(y, 3, 2), "features.4", 2, 1).relu())
        y, later = caffe_pool(y, 3, 2), (8, 10, 12)
    else:
        y = w.conv(caffe_pool(y, 3, 3), "features.4").relu()
        y, later = caffe_pool(y, 2, 2), (7, 9, 11)
    for number in later:
        y = w.conv(y, f"features.{number}", 1, 1).relu()
    assert agree(network, x, y)


def test_the_third_party_resnet20_keeps_its_accuracy_on_real_pictures(shared_data: Path) -> None:
    from safetensors.torch import load_file

    from analyzers.pixels import to_model_input
    from analyzers.read_pictures import read_pictures

    backbone, head = split_checkpoint(load_file(shared_data / "resnet20-12fca82f.safetensors"))
    network = Network(BACKBONES["resnet20"](), 10, size=32).eval()
    load_backbone(network.backbone, backbone)
    network.head.load_state_dict(head, strict=False)
    test = read_pictures(shared_data / "cifar10-lossless.npz").of_split("test")
    with torch.no_grad():
        best = network(torch.from_numpy(to_model_input(test.decoded(32, 32))))[0].argmax(1).numpy()
    assert (best == test.label).mean() > 0.89  # 91.78 % stated; standard error 1.3 points on 450 pictures
