"""`parts`: the interpretable layer and its filter loss (Interpretable CNNs, arXiv 1710.00935).

Deviations from the paper, each with its reason: templates have peak 1 (the paper's tau shrinks the signal of
every layer); the loss works on activations divided by each filter's own scale, so that it means the same in
any network; of the loss family the "plain" member is used, which pulls a filter's activation to one place on
pictures of its class and down everywhere on others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyzers.parts import part_template

_DECAY = 0.95


class PartLayer(nn.Module):
    """A convolution whose filters are each masked by a part template round their own peak.

    Attributes:
        scale: (filters,) running mean of the peak activation.
        response: (filters, classes) running mean of the scaled peak on pictures of each class.
    """

    table: Tensor
    templates: Tensor
    scale: Tensor
    response: Tensor

    def __init__(self, inputs: int, filters: int, cells: int, classes: int, beta: float = 4.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, filters, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(filters)
        self.cells, self.filters = cells, filters
        templates = torch.from_numpy(part_template(cells, beta))
        self.register_buffer("templates", templates, persistent=False)
        # For maps >= 0, max(x T, 0) = x max(T, 0): clamping the table saves an operation.
        self.register_buffer("table", templates.clamp(min=0), persistent=False)
        self.register_buffer("scale", torch.ones(filters))
        self.register_buffer("response", torch.zeros(filters, classes))

    def map(self, x: Tensor) -> Tensor:
        """Return the map before the mask, >= 0, (batch, filters, cells, cells)."""
        return F.relu(self.bn(self.conv(x)))

    def mask(self, x: Tensor) -> Tensor:
        """Keep of each map what lies under the part template at its first highest cell (section 3, forward)."""
        peak = x.flatten(2).argmax(2)
        return x * F.embedding(peak, self.table).reshape(x.shape)

    @property
    def learned_for(self) -> Tensor:
        """Class of each filter: the one on whose pictures it peaks highest, (filters,)."""
        return self.response.argmax(1)

    @torch.no_grad()
    def observe(self, x: Tensor, label: Tensor) -> None:
        """Update the running scales and class responses from a batch of maps."""
        peak = x.flatten(2).amax(2)
        self.scale.lerp_(peak.mean(0), 1 - _DECAY)
        member = F.one_hot(label, self.response.shape[1]).to(x.dtype)
        count = member.sum(0)
        mean = (peak / self.scale.clamp(min=1e-6)).T @ member / count.clamp(min=1)
        seen = count > 0
        self.response[:, seen] = torch.lerp(self.response[:, seen], mean[:, seen], 1 - _DECAY)

    def filter_loss(self, x: Tensor, label: Tensor, class_share: Tensor) -> Tensor:
        """Return the "plain" filter loss of unmasked maps, the mean over pictures and filters.

        Args:
            x: maps before the mask, (batch, filters, cells, cells).
            label: true classes, (batch,).
            class_share: share of each class in the data, (classes,); balances own and other pictures.
        """
        scaled = x / self.scale.clamp(min=1e-6)[:, None, None]
        flat = scaled.flatten(2)
        template = F.embedding(flat.argmax(2), self.templates)
        attracted, everywhere = (flat * template).sum(2), flat.sum(2)
        category = self.learned_for
        own = label[:, None] == category[None, :]
        share = class_share[category]
        loss = torch.where(own, -attracted * 0.5 / share, everywhere * 0.5 / (1 - share).clamp(min=1e-6))
        return loss.mean()
