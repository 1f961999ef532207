"""The whole classifier: normalisation, backbone, interpretable layers, mean over cells, final layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from analyzers.manifest import Peak, Triple
from training.backbones import Backbone
from training.class_features import DecomposedHead
from training.filter_losses import FilterState
from training.interpretable import interpretable_layers, make_interpretable, recorded_maps
from training.parts import PartLayer
from training.templates import Beta

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class Network(nn.Module):
    """From pictures in 0..1 to logits.

    Attributes:
        mean: subtracted from pictures, per channel.
        std: divided by, per channel.
        normalisation: the same two as numbers.
        parts: the interpretable layer before the mean; None where that map is an ordinary one.
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
        layers: Sequence[str] = (),
        beta: Beta = 4.0,
        peak: Peak = "argmax",
        masked: bool = True,
        against_rest: bool = False,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
    ) -> None:
        """Put the network together.

        Args:
            backbone: becomes part of it.
            classes: how many there are.
            size: height and width of the pictures in pixels.
            filters: of a convolution behind the backbone, which is then the interpretable layer; 0 adds none.
            layers: names of layers in the backbone to be made interpretable.
            beta: steepness of the part templates.
            peak: what they are centred on.
            masked: False makes the ordinary network to compare with, of the same tensors.
            against_rest: class 1 is one category and class 0 everything else, with a logit of 0.
            mean: subtracted from pictures, per channel.
            std: divided by, per channel.

        Raises:
            LayerError: the backbone has no such layer, or it cannot be masked.
        """
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1))
        self.normalisation = (mean, std)
        self.backbone = backbone
        example = torch.zeros(1, 3, size, size)
        with torch.no_grad():
            cells = backbone.eval()(example).shape[-1]
        last = False
        for name in layers:
            # What the backbone ends in is masked behind it, so that its map can be pooled and reported as parts.
            if not filters and _is_last(backbone, name, example):
                last = True
            else:
                make_interpretable(
                    backbone, name, classes=classes, example=example, beta=beta, peak=peak, masked=masked
                )
        self.parts: PartLayer | None = None
        if filters or last:
            self.parts = PartLayer(backbone.channels, filters, cells, classes, beta=beta, peak=peak, masked=masked)
        gain = 1.0 if self.parts is None else self.parts.gain
        self.head = DecomposedHead(filters or backbone.channels, classes, gain, against_rest=against_rest)
        if against_rest:
            for state in self.states:
                state.category.fill_(1)

    @property
    def states(self) -> list[FilterState]:
        """The running figures of all interpretable layers."""
        inner = [layer.state for layer in interpretable_layers(self.backbone).values()]
        return inner if self.parts is None else [*inner, self.parts.state]

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

    def with_all_maps(self, x: Tensor) -> tuple[Tensor, list[tuple[FilterState, Tensor]]]:
        """Return logits, and for each interpretable layer its state and its maps before the mask."""
        with recorded_maps(self.backbone) as recorded:
            logits, last = self(x)
        maps = [(layer.state, x) for layer, x in recorded.items()]
        return logits, maps if self.parts is None else [*maps, (self.parts.state, last)]


def _is_last(backbone: Backbone, layer: str, example: Tensor) -> bool:
    """Whether what a layer gives is what the backbone gives."""
    given: list[object] = []
    module = dict(backbone.named_modules()).get(layer)
    if module is None:
        return False  # `make_interpretable` says so
    hook = module.register_forward_hook(lambda module, inputs, output: given.append(output))
    try:
        with torch.no_grad():
            output = backbone(example)
    finally:
        hook.remove()
    return len(given) == 1 and given[0] is output
