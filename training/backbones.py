"""Convolutional networks up to their last conv map, with the field's usual parameter names.

AlexNet, VGG-16, DenseNet-121 and ResNet-18, -34 and -50 follow torchvision's names, ResNet-20, -32 and -56 those of
the CIFAR networks of arXiv 1512.03385. VGG-M and VGG-S (arXiv 1405.3531, as released) number their layers alike.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Backbone(nn.Sequential):
    """A network from pictures (batch, 3, h, w) to its last conv map (batch, channels, rows, columns), >= 0.

    Attributes:
        channels: filters of that map.
    """

    def __init__(self, channels: int, layers: dict[str, nn.Module]) -> None:
        super().__init__(OrderedDict(layers))
        self.channels = channels


class Conv(NamedTuple):
    """A convolution and its ReLU, a row of a table."""

    filters: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Pool(NamedTuple):
    """A max pooling, a row of a table; with `ceil`, what is left at the border is pooled too."""

    kernel: int = 2
    stride: int = 2
    ceil: bool = False


class Norm(NamedTuple):
    """Local response normalisation over neighbouring filters, a row of a table."""

    filters: int = 5


class Stage(NamedTuple):
    """Residual blocks of equal width, a row of a table; the first one has the stride."""

    filters: int
    blocks: int
    stride: int = 2


# AlexNet and the VGG family: convolutions one after another, up to the ReLU before the last pooling.

ALEXNET = (Conv(64, 11, 4, 2), Pool(3), Conv(192, 5, 1, 2), Pool(3), Conv(384), Conv(256), Conv(256))
VGG16 = (
    *(Conv(64), Conv(64), Pool()),
    *(Conv(128), Conv(128), Pool()),
    *(Conv(256), Conv(256), Conv(256), Pool()),
    *(Conv(512), Conv(512), Conv(512), Pool()),
    *(Conv(512), Conv(512), Conv(512)),
)
VGG_M = (
    *(Conv(96, 7, 2, 0), Norm(), Pool(3, ceil=True)),
    *(Conv(256, 5, 2, 1), Norm(), Pool(3, ceil=True)),
    *(Conv(512), Conv(512), Conv(512)),
)
VGG_S = (
    *(Conv(96, 7, 2, 0), Norm(), Pool(3, 3, ceil=True)),
    *(Conv(256, 5, 1, 0), Pool(ceil=True)),  # the paper's table pads by 1, the released network does not
    *(Conv(512), Conv(512), Conv(512)),
)


def plain(rows: Iterable[Conv | Pool | Norm]) -> Backbone:
    """Build a network without shortcuts from its table."""
    features, channels = nn.Sequential(), 3
    for row in rows:
        match row:
            case Conv(filters, kernel, stride, padding):
                conv = nn.Conv2d(channels, filters, kernel, stride, padding)
                nn.init.kaiming_normal_(conv.weight)  # by torch's default, the signal dies out layer by layer
                features.extend([conv, nn.ReLU(inplace=True)])
                channels = filters
            case Pool(kernel, stride, ceil):
                features.append(nn.MaxPool2d(kernel, stride, ceil_mode=ceil))
            case Norm(filters):
                features.append(nn.LocalResponseNorm(filters, alpha=5e-4, beta=0.75, k=2.0))
    return Backbone(channels, {"features": features})


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `projected` shortcuts have weights, others subsample and pad with 0."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, projected: bool = True) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs
        self.downsample = _projection(inputs, outputs, stride) if projected else None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, outputs, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            shortcut: Tensor = self.downsample(x)
            return shortcut
        if self.stride == 1 and not self.added:
            return x
        half = self.added // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.added - half))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the 3x3 one has the stride, as in torchvision."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, outputs, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def residual(
    block: Callable[[int, int, int], nn.Module], stem: Conv, stages: Iterable[Stage], *, pooled: bool = False
) -> Backbone:
    """Build a residual network from its first convolution, a pooling where `pooled`, and its stages."""
    layers: dict[str, nn.Module] = {
        "conv1": _conv(3, stem.filters, stem.kernel, stem.stride),
        "bn1": nn.BatchNorm2d(stem.filters),
        "relu": nn.ReLU(inplace=True),
    }
    if pooled:
        layers["maxpool"] = nn.MaxPool2d(3, 2, 1)
    channels = stem.filters
    for number, (filters, blocks, stride) in enumerate(stages, start=1):
        first = block(channels, filters, stride)
        layers[f"layer{number}"] = nn.Sequential(first, *(block(filters, filters, 1) for _ in range(blocks - 1)))
        channels = filters
    return Backbone(channels, layers)


def small(stride: int = 8) -> Backbone:
    """Build a residual network for pictures of 48 to 128 pixels, at a stride of 4 or 8."""
    return residual(BasicBlock, Conv(32, 3, 2), [Stage(32, 1, 1), Stage(64, 1), Stage(128, 1, stride // 4)])


def cifar_resnet(blocks: int) -> Backbone:
    """Build ResNet-(6 n + 2) for 32x32 pictures: 64 filters on an 8x8 map."""
    block = partial(BasicBlock, projected=False)
    return residual(block, Conv(16), [Stage(16, blocks, 1), Stage(32, blocks), Stage(64, blocks)])


def resnet(
    block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, int, int, int], width: int, stride: int = 32
) -> Backbone:
    """Build a residual network for ImageNet; the last stage keeps its resolution where `stride` is 16."""
    strides = (1, 2, 2, stride // 16)
    stages = [Stage(width * 2**i, blocks[i], strides[i]) for i in range(4)]
    return residual(block, Conv(64, 7, 2), stages, pooled=True)


class DenseLayer(nn.Module):
    """1x1 and 3x3 convolutions, each behind its normalisation; their `growth` filters join those that came in."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, 4 * growth, 1)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = _conv(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, inputs + growth, h, w)."""
        y = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        return torch.cat([x, y], 1)


def densenet(blocks: tuple[int, ...], growth: int = 32, width: int = 64) -> Backbone:
    """Build a densely connected network (arXiv 1608.06993) up to the ReLU behind `norm5`, at a stride of 32."""
    features: dict[str, nn.Module] = {
        "conv0": _conv(3, width, 7, 2),
        "norm0": nn.BatchNorm2d(width),
        "relu0": nn.ReLU(inplace=True),
        "pool0": nn.MaxPool2d(3, 2, 1),
    }
    for number, layers in enumerate(blocks, start=1):
        block = {f"denselayer{i + 1}": DenseLayer(width + i * growth, growth) for i in range(layers)}
        features[f"denseblock{number}"] = nn.Sequential(OrderedDict(block))
        width += layers * growth
        if number < len(blocks):
            features[f"transition{number}"] = _transition(width)
            width //= 2
    features["norm5"] = nn.BatchNorm2d(width)
    return Backbone(width, {"features": nn.Sequential(OrderedDict(features)), "relu": nn.ReLU(inplace=True)})


def _transition(width: int) -> nn.Sequential:
    norm, conv = nn.BatchNorm2d(width), _conv(width, width // 2, 1)
    return nn.Sequential(OrderedDict(norm=norm, relu=nn.ReLU(inplace=True), conv=conv, pool=nn.AvgPool2d(2)))


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "small": small,
    "small-stride4": partial(small, stride=4),
    "resnet20": partial(cifar_resnet, 3),
    "resnet32": partial(cifar_resnet, 5),
    "resnet56": partial(cifar_resnet, 9),
    "resnet18": partial(resnet, BasicBlock, (2, 2, 2, 2), 64),
    "resnet18-stride16": partial(resnet, BasicBlock, (2, 2, 2, 2), 64, stride=16),
    "resnet34": partial(resnet, BasicBlock, (3, 4, 6, 3), 64),
    "resnet34-stride16": partial(resnet, BasicBlock, (3, 4, 6, 3), 64, stride=16),
    "resnet50": partial(resnet, Bottleneck, (3, 4, 6, 3), 256),
    "resnet50-stride16": partial(resnet, Bottleneck, (3, 4, 6, 3), 256, stride=16),
    "densenet121": partial(densenet, (6, 12, 24, 16)),
    "alexnet": partial(plain, ALEXNET),
    "vgg16": partial(plain, VGG16),
    "vgg-m": partial(plain, VGG_M),
    "vgg-s": partial(plain, VGG_S),
}

# What checkpoints call the layers behind the backbone; `classif` is VGG-M's, `pre_logits` timm's.
HEADS = re.compile(r"(?:linear|fc|classifier|classif|head|pre_logits)\.(.+)")


def split_checkpoint(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a checkpoint into backbone and what follows it, dropping a `module.` prefix.

    DenseNet's `denselayer1.norm.1` in torchvision's checkpoints becomes `denselayer1.norm1`, as in its code.

    Returns:
        Two state dicts. The second one holds `weight` and `bias` of the final layer, or, of AlexNet and VGG, several
        fully connected layers (`0.weight` and so on), which a head of one layer has no place for.
    """
    split_name = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    tensors = {split_name.sub(r"\1\2", name.removeprefix("module.")): tensor for name, tensor in tensors.items()}
    head = {behind[1]: tensor for name, tensor in tensors.items() if (behind := HEADS.fullmatch(name))}
    return {name: tensor for name, tensor in tensors.items() if not HEADS.fullmatch(name)}, head


def load_backbone(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    """Load weights by name; counters of batches seen may be missing.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape; the first few are named.
    """
    own = backbone.state_dict()
    wrong = [
        f"{name} has shape {list(tensors[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    wrong += [f"{name} is missing" for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    wrong += [f"{name} is unknown" for name in tensors if name not in own]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"the weights do not fit: {'; '.join(wrong[:3])}{more}")
    with torch.no_grad():
        backbone.load_state_dict(tensors, strict=False)
