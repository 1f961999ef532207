"""`parts`: the interpretable layer (Interpretable CNNs, arXiv 1710.00935, section 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from analyzers.manifest import Peak
from training.filter_losses import FilterState
from training.templates import Beta, PartTemplates


class PartLayer(nn.Module):
    """A convolution whose filters are each masked by a part template round their own peak.

    Attributes:
        conv: the convolution, or None where the maps that come in are masked themselves.
        state: running figures of the filters, for the filter losses, and their templates.
        filters: how many there are.
        masked: whether the mask is on; without it this is an ordinary layer of the same size.
        gain: cells / cells' worth that a template leaves; makes up for the mean over all cells.
    """

    def __init__(
        self,
        inputs: int,
        filters: int,
        cells: int,
        classes: int,
        *,
        beta: Beta = 4.0,
        peak: Peak = "argmax",
        masked: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, filters, 3, 1, 1, bias=False) if filters else None
        self.bn = nn.BatchNorm2d(filters) if filters else None
        self.filters = filters or inputs
        self.state = FilterState(self.filters, PartTemplates(cells, cells, self.filters, beta, peak), classes)
        self.masked = masked
        self.gain = self.state.templates.gain if masked else 1.0

    def map(self, x: Tensor) -> Tensor:
        """Return the map before the mask, >= 0, (batch, filters, cells, cells)."""
        return F.relu(x if self.conv is None or self.bn is None else self.bn(self.conv(x)))

    def mask(self, x: Tensor) -> Tensor:
        """Keep of each map what lies under the part template at its peak."""
        return self.state.templates.mask(x) if self.masked else x
