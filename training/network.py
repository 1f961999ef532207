"""The whole classifier: normalisation, backbone, interpretable layer, mean over cells, final layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from analyzers.manifest import Triple
from training.backbones import Backbone
from training.class_features import DecomposedHead
from training.parts import PartLayer

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class Network(nn.Module):
    """From pictures in 0..1 to logits.

    Attributes:
        mean: subtracted from pictures, per channel.
        std: divided by, per channel.
        normalisation: the same two as numbers.
        parts: the interpretable layer; None for an ordinary network.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        size: int,
        filters: int = 0,
        beta: float = 4.0,
        masked: bool = True,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1))
        self.normalisation = (mean, std)
        self.backbone = backbone
        self.parts: PartLayer | None = None
        gain = 1.0
        if filters:
            with torch.no_grad():
                cells = backbone.eval()(torch.zeros(1, 3, size, size)).shape[-1]
            self.parts = PartLayer(backbone.channels, filters, cells, classes, beta=beta, masked=masked)
            gain = self.parts.gain
        self.head = DecomposedHead(filters or backbone.channels, classes, gain)

    def map(self, x: Tensor) -> Tensor:
        """Return the last conv map, unmasked: (batch, filters, cells, cells)."""
        y: Tensor = self.backbone((x - self.mean) / self.std)
        return y if self.parts is None else self.parts.map(y)

    def pooled(self, x: Tensor) -> Tensor:
        """Turn maps into features: the mean over cells of what the part template leaves, (batch, filters)."""
        return (x if self.parts is None else self.parts.mask(x)).mean((2, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, h, w) in 0..1 -> logits (batch, classes) and the unmasked map."""
        maps = self.map(x)
        return self.head(self.pooled(maps)), maps
