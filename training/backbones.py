"""Convolutional networks up to their last conv map, with the field's usual parameter names.

ResNet-18 follows torchvision's names, ResNet-20, -32 and -56 those of the CIFAR networks of arXiv 1512.03385.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `projected` shortcuts have weights, others subsample and pad with 0."""

    def __init__(self, inputs: int, planes: int, stride: int, *, projected: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.added = stride, planes - inputs
        self.downsample: nn.Module | None = None
        if projected and (stride != 1 or inputs != planes):
            self.downsample = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, planes, h / stride, w / stride)."""
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


def _stage(inputs: int, planes: int, blocks: int, stride: int, *, projected: bool) -> nn.Sequential:
    first = BasicBlock(inputs, planes, stride, projected=projected)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1, projected=projected) for _ in range(blocks - 1)))


class Backbone(nn.Module):
    """A network from pictures to its last conv map.

    Attributes:
        channels: filters of that map.
    """

    channels: int


class CifarResNet(Backbone):
    """ResNet-(6 n + 2) for 32x32 pictures: 64 filters on an 8x8 map."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1, projected=False)
        self.layer2 = _stage(16, 32, blocks, 2, projected=False)
        self.layer3 = _stage(32, 64, blocks, 2, projected=False)
        self.channels = 64

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, h, w) -> (batch, 64, h / 4, w / 4)."""
        x = F.relu(self.bn1(self.conv1(x)))
        y: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return y


class ResNet18(Backbone):
    """ResNet-18 in torchvision's names; the last stage keeps its resolution (stride 16) where `stride` is 16."""

    def __init__(self, stride: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(64, 64, 2, 1, projected=True)
        self.layer2 = _stage(64, 128, 2, 2, projected=True)
        self.layer3 = _stage(128, 256, 2, 2, projected=True)
        self.layer4 = _stage(256, 512, 2, stride // 16, projected=True)
        self.channels = 512

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, h, w) -> (batch, 512, h / stride, w / stride)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        y: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return y


class SmallResNet(Backbone):
    """A residual network for pictures of 48 to 128 pixels: 128 filters at a stride of 4 or 8."""

    def __init__(self, stride: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layer1 = _stage(32, 32, 1, 1, projected=True)
        self.layer2 = _stage(32, 64, 1, 2, projected=True)
        self.layer3 = _stage(64, 128, 1, stride // 4, projected=True)
        self.channels = 128

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, h, w) -> (batch, 128, h / stride, w / stride)."""
        x = F.relu(self.bn1(self.conv1(x)))
        y: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return y


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "small": SmallResNet,
    "small-stride4": lambda: SmallResNet(stride=4),
    "resnet20": lambda: CifarResNet(3),
    "resnet32": lambda: CifarResNet(5),
    "resnet56": lambda: CifarResNet(9),
    "resnet18": ResNet18,
    "resnet18-stride16": lambda: ResNet18(stride=16),
}

HEAD_NAMES = ("linear", "fc", "classifier", "head")


def split_checkpoint(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a checkpoint into backbone and final layer, dropping a `module.` prefix.

    Returns:
        Two state dicts; the second one holds `weight` and `bias` of the final layer.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    heads = {
        f"{head}.{kind}": kind for head in HEAD_NAMES for kind in ("weight", "bias") if f"{head}.{kind}" in tensors
    }
    return (
        {name: tensor for name, tensor in tensors.items() if name not in heads},
        {kind: tensors[name] for name, kind in heads.items()},
    )


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
