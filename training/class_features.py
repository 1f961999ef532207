"""`class_features`: a final layer decomposed into class subspaces (Decomposing the Deep, arXiv 2112.07719)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyzers.class_features import Head, Int64Array, membership


class DecomposedHead(nn.Linear):
    """A final layer in which each class reads only its own features; a dense layer until `decompose` is called.

    Attributes:
        mask: (classes, features), 1 where a class reads a feature.
        gain: constant factor of all weights. A template leaves few of a map's cells, so its mean over all of
            them is small; without the gain the layer would have to grow its weights first.
        open: (classes,) 1, or, for one category against the rest, 0 for the rest, whose logit is always 0. Softmax
            over the two is then the logistic function of the category's logit, and cross-entropy the logistic loss.
    """

    mask: Tensor
    open: Tensor

    def __init__(self, features: int, classes: int, gain: float = 1.0, *, against_rest: bool = False) -> None:
        super().__init__(features, classes)
        self.gain = gain
        self.register_buffer("mask", torch.ones(classes, features))
        self.register_buffer("open", torch.ones(classes), persistent=False)
        if against_rest:
            self.open[0] = 0

    def effective_weight(self) -> Tensor:
        """Return what multiplies the features, (classes, features)."""
        return self.weight * self.mask * self.gain * self.open[:, None]

    def effective_bias(self) -> Tensor:
        """Return what is added, (classes,)."""
        return self.bias * self.open

    def forward(self, pooled: Tensor) -> Tensor:
        """(batch, features) -> (batch, classes)."""
        return F.linear(pooled, self.effective_weight(), self.effective_bias())

    def head(self) -> Head:
        """Return the layer's numbers."""
        return Head(self.effective_weight().detach().cpu().numpy(), self.effective_bias().detach().cpu().numpy())

    def decompose(self, sets: Int64Array) -> None:
        """Let each class read only the features of its set, (classes, k)."""
        self.mask.copy_(torch.from_numpy(membership(self.head(), sets)))
