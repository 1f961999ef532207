"""Batch normalisation over the whole batch when several processes hold a part of it each.

torch has this for GPUs only (`SyncBatchNorm`, which is taken there); on processors it is what follows. Means, variances
and gradients are those of the batch as one, whatever the parts' sizes, an empty part included.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_AXES = (0, 2, 3)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` over the parts of all processes while it learns; parameters and buffers have the same names."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> SharedBatchNorm2d:
        """Return one with the parameters and buffers of an ordinary one."""
        made = cls(norm.num_features, norm.eps, norm.momentum)
        made.weight, made.bias = norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        return made.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(part of the batch, channels, rows, columns) -> the same."""
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = _Normalised.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.running_mean is not None  # noqa: S101 (no backbone goes without)
            assert self.running_var is not None  # noqa: S101
            assert self.num_batches_tracked is not None  # noqa: S101
            self.num_batches_tracked.add_(1)
            weight = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), weight)
        normalised: Tensor = y
        return normalised


class _Normalised(torch.autograd.Function):
    """Normalise by the mean and the variance of all processes' parts."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 # torch's own has no type
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _moments(x)
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:  # noqa: ANN401
        x, weight, mean, rate, count = ctx.saved_tensors
        wide = (1, -1, 1, 1)
        slope, unit = gradient.to(mean.dtype), (x - mean.view(wide)) * rate.view(wide)
        own = torch.stack([slope.sum(_AXES, dtype=torch.float64), (slope * unit).sum(_AXES, dtype=torch.float64)])
        whole = own.clone()
        dist.all_reduce(whole)
        common, along = (whole / count).to(mean.dtype)
        inner = slope - common.view(wide) - unit * along.view(wide)
        at_input = inner * (weight * rate).view(wide)
        return at_input.to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance (channels,) over all processes' parts, and how many values each was taken over."""
    channels, exact = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    own = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if x.numel():
        variance, mean = torch.var_mean(x.to(exact), _AXES, correction=0)
        own[:channels], own[channels:-1], own[-1] = mean, variance, x.numel() // channels
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    every = torch.stack(parts)
    means, variances, counts = every[:, :channels], every[:, channels:-1], every[:, -1:]
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return mean.to(exact), variance.to(exact), count


def share_norms(network: nn.Module, device: torch.device) -> None:
    """Let a network's batch normalisations work on the parts of all processes, in place."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, SharedBatchNorm2d.of(child))
