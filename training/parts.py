"""`parts`: the interpretable layer (Interpretable CNNs, arXiv 1710.00935, section 3).

One deviation from the paper: templates have peak 1, for its constant tau shrinks the signal of every layer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.filter_losses import FilterState


class PartLayer(nn.Module):
    """A convolution whose filters are each masked by a part template round their own peak.

    Attributes:
        state: running figures of the filters, for the filter losses.
        masked: whether the mask is on; without it this is an ordinary layer of the same size.
        gain: cells^2 / cells' worth that a template leaves; makes up for the mean over all cells.
    """

    table: Tensor

    def __init__(
        self, inputs: int, filters: int, cells: int, classes: int, *, beta: float = 4.0, masked: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, filters, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(filters)
        self.state = FilterState(filters, cells, classes, beta)
        # For maps >= 0, max(x T, 0) = x max(T, 0): clamping the table saves an operation.
        self.register_buffer("table", self.state.templates.clamp(min=0), persistent=False)
        self.masked = masked
        middle = (cells // 2) * cells + cells // 2
        self.gain = cells**2 / float(self.table[middle].sum()) if masked else 1.0

    def map(self, x: Tensor) -> Tensor:
        """Return the map before the mask, >= 0, (batch, filters, cells, cells)."""
        return F.relu(self.bn(self.conv(x)))

    def mask(self, x: Tensor) -> Tensor:
        """Keep of each map what lies under the part template at its first highest cell."""
        if not self.masked:
            return x
        peak = x.flatten(2).argmax(2)
        return x * F.embedding(peak, self.table).reshape(x.shape)
