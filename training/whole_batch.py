"""The whole batch in every process: maps and logits of all parts, through which gradients flow back to their own.

Losses may couple the pictures of a batch in any way then, as filter losses do, and need not know that there are
several processes. Every process computes the same loss of the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.filter_losses import FilterState
from training.network import Network
from training.ranks import Ranks


class WithAllMaps(nn.Module):
    """A network called for its logits and all its maps, as torch's wrapper for several processes wants it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[FilterState, Tensor]]]:
        """Return what `Network.with_all_maps` does."""
        return self.network.with_all_maps(x)


def whole(own: Tensor, ranks: Ranks, count: int) -> Tensor:
    """Return all processes' rows in their order, (count, ...), from one's own share of them."""
    if ranks.count == 1:
        return own
    rows: Tensor = _Whole.apply(own, ranks, count)
    return rows


class _Whole(torch.autograd.Function):
    """All rows. Processes' gradients are averaged afterwards, so each one's own rows count as often as there are."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks, count: int) -> Tensor:  # noqa: ANN401 # torch's own has no type
        ctx.ranks, ctx.count = ranks, count
        shares = [ranks.share_of(number, count) for number in range(ranks.count)]
        longest = max(share.stop - share.start for share in shares)
        sent = own.new_zeros((longest, *own.shape[1:]))  # processes exchange equal numbers of rows
        sent[: len(own)] = own
        parts = [torch.empty_like(sent) for _ in shares]
        dist.all_gather(parts, sent)
        return torch.cat([part[: share.stop - share.start] for part, share in zip(parts, shares, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return gradient[ctx.ranks.share(ctx.count)] * ctx.ranks.count, None, None
