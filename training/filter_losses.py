"""Filter losses: what pulls each filter of an interpretable layer to one part of one class (arXiv 1710.00935).

One interface for all, `(features, logits, labels, state) -> (loss, state)`. Every loss works on the maps before the
mask, divided by each filter's own running scale, so that it means the same in any network, with or without batch
normalisation (the paper's tau presumes activations of order 100 and has next to no gradient at order 1).

`plain`, `code`, `paper` and `mi` are the family of the paper; `gates` is that of class-specific gates (CSG, ECCV
2020) and `groups` that of concept groups (CGL, IJCAI 2021), both by their published formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from training.templates import PartTemplates

_DECAY = 0.95
_TINY = 1e-6


class FilterState(nn.Module):
    """What the filter losses remember of a layer; saved with it.

    Attributes:
        templates: the layer's part templates.
        scale: (filters,) running mean of the peak activation.
        response: (filters, classes) running mean of the scaled peak on pictures of each class.
        class_share: (classes,) share of pictures with each class.
        category: (filters,) class that each filter is held to; -1 where it is the one it responds to most.
        push: how much pictures of other classes weigh against those of its own, in `balance`.
        gate: (filters, classes) in 0..1; used and learned by `gates` alone.
        classify: logits of given maps; `gates` needs it for its second pass through the head.
    """

    scale: Tensor
    response: Tensor
    class_share: Tensor
    category: Tensor

    def __init__(self, filters: int, templates: PartTemplates, classes: int) -> None:
        super().__init__()
        self.templates = templates
        self.register_buffer("scale", torch.ones(filters))
        self.register_buffer("response", torch.zeros(filters, classes))
        self.register_buffer("class_share", torch.full((classes,), 1 / max(classes, 2)))
        self.register_buffer("category", torch.full((filters,), -1))
        self.gate = nn.Parameter(torch.full((filters, classes), 0.5), requires_grad=False)
        self.push = 1.0
        self.classify: Callable[[Tensor], Tensor] | None = None

    @property
    def learned_for(self) -> Tensor:
        """Class of each filter: the one it is held to, or on whose pictures it peaks highest, (filters,)."""
        return torch.where(self.category >= 0, self.category, self.response.argmax(1))

    def share_out(self) -> None:
        """Hold each filter to a class, an equal number of filters to each, so that their responses sum up highest."""
        filters, classes = self.response.shape
        seats = torch.arange(filters, device=self.response.device) % classes  # one column for each place to fill
        preference = (self.response - self.response.mean(1, keepdim=True)).cpu().numpy()
        rows, columns = linear_sum_assignment(preference[:, seats.cpu().numpy()], maximize=True)
        self.category[torch.from_numpy(rows)] = seats[torch.from_numpy(columns)]

    def member(self, labels: Tensor) -> Tensor:
        """Return (batch, classes) 0/1 from class numbers (batch,) or a multi-label mask (batch, classes)."""
        if labels.ndim == 2:
            return labels.to(self.scale.dtype)
        if self.response.shape[1] == 1:  # a single category: the label says whether the picture has it
            return labels[:, None].to(self.scale.dtype)
        return F.one_hot(labels, self.response.shape[1]).to(self.scale.dtype)

    @torch.no_grad()
    def normalise_gates(self) -> None:
        """Scale each filter's gates to a largest one of 1, in 0..1; after every step in which they were learned."""
        if self.gate.requires_grad:
            gate = self.gate.clamp(min=0)
            self.gate.copy_((gate / gate.amax(1, keepdim=True).clamp(min=_TINY)).clamp(0, 1))

    @torch.no_grad()
    def observe(self, features: Tensor, labels: Tensor) -> None:
        """Update the running scales, class responses and templates from a batch of maps."""
        peak = features.flatten(2).amax(2).to(self.scale.dtype)
        self.scale.lerp_(peak.mean(0), 1 - _DECAY)
        member = self.member(labels)
        count = member.sum(0)
        mean = (peak / self.scale.clamp(min=_TINY)).T @ member / count.clamp(min=1)
        seen = count > 0
        self.response[:, seen] = torch.lerp(self.response[:, seen], mean[:, seen], 1 - _DECAY)
        self.templates.adapt(features, self.own(labels))

    def scaled(self, features: Tensor) -> Tensor:
        """Return the maps with unit peaks on average, flattened: (batch, filters, cells^2)."""
        return features.flatten(2) / self.scale.clamp(min=_TINY)[:, None]

    def own(self, labels: Tensor) -> Tensor:
        """Return (batch, filters): whether the picture has the filter's class."""
        return self.member(labels)[:, self.learned_for] > 0

    def balance(self) -> tuple[Tensor, Tensor]:
        """Return weights (filters,) of own and of other pictures, so that both sides weigh the same but for `push`."""
        share = self.class_share[self.learned_for].clamp(_TINY, 1 - _TINY)
        return 0.5 / share, 0.5 * self.push / (1 - share)


class FilterLoss(Protocol):
    """A filter loss.

    Args:
        features: maps before the mask, >= 0, (batch, filters, cells, cells).
        logits: what the network predicted, (batch, classes).
        labels: class numbers (batch,), or a multi-label mask (batch, classes).
        state: the layer's running figures.
    """

    def __call__(
        self, features: Tensor, logits: Tensor, labels: Tensor, state: FilterState
    ) -> tuple[Tensor, FilterState]:
        """Return the loss, a mean over pictures and filters, and the state."""
        ...


def plain(features: Tensor, logits: Tensor, labels: Tensor, state: FilterState) -> tuple[Tensor, FilterState]:
    """Pull activation to the peak's template on own pictures, down everywhere on others: `code` with weights of 1."""
    x = state.scaled(features)
    attracted = (x * state.templates(state.templates.centres(features))).sum(2)
    positive, negative = state.balance()
    return torch.where(state.own(labels), -positive * attracted, negative * x.sum(2)).mean(), state


def code(features: Tensor, logits: Tensor, labels: Tensor, state: FilterState) -> tuple[Tensor, FilterState]:
    """Weight each picture exponentially by how well it fits already, as the authors' released code does.

    Deviations: weights are clamped at 0 (negative ones flip the code's sign silently) and exponentials are shifted.
    """
    temperature = 0.5
    x = state.scaled(features)
    template = state.templates(state.templates.centres(features))
    attracted, everywhere = (x * template).sum(2), x.sum(2)
    own = state.own(labels)
    with torch.no_grad():
        cells = x.shape[2]
        other = (x * template.flip(0, 1)).sum(2) / cells  # templates of another picture and filter estimate Z
        fits = attracted / cells / temperature
        spared = -everywhere / cells / temperature
        weight = _shares(fits, _log_mean_exp(other / temperature), own)
        push = _shares(spared, _log_mean_exp(spared), ~own)
    positive, negative = state.balance()
    return torch.where(own, -positive * weight * attracted, negative * push * everywhere).mean(), state


def _log_mean_exp(q: Tensor) -> Tensor:
    return torch.logsumexp(q, 0) - math.log(len(q))


def _shares(q: Tensor, log_z: Tensor, chosen: Tensor) -> Tensor:
    """Return exp(q) (q - log Z + 1) over the chosen pictures, scaled to mean 1 per filter."""
    lowest = torch.finfo(q.dtype).min
    shifted = torch.exp(q - torch.where(chosen, q, lowest).amax(0).clamp(min=-1e30))
    weight = torch.where(chosen, shifted * (q - log_z + 1).clamp(min=0), 0.0)
    return weight / (weight.sum(0) / chosen.sum(0).clamp(min=1)).clamp(min=_TINY)


def _scores(features: Tensor, state: FilterState) -> Tensor:
    """Return S_bt = <x_b, T_t>, (batch, filters, cells^2 + 1); the last t is T-."""
    x = state.scaled(features)
    return torch.cat([state.templates.scores(x), -x.sum(2, keepdim=True)], 2)


def mutual_information(scores: Tensor) -> Tensor:
    """Return MI(X; T) of each filter in nats, (filters,), from S_bt, (batch, filters, templates)."""
    ratio = scores - _log_mean_exp(scores)  # log p(x_b | T_t) / uniform
    count, templates = ratio.shape[0], ratio.shape[2]
    log_p = torch.logsumexp(ratio, 2, keepdim=True) - math.log(templates)
    return (torch.exp(ratio) * (ratio - log_p)).sum((0, 2)) / (count * templates)


def paper(features: Tensor, logits: Tensor, labels: Tensor, state: FilterState) -> tuple[Tensor, FilterState]:
    """Follow Eq. (4) with the sign that the printed one lacks: one template per picture, chosen by its class."""
    scores = _scores(features, state)
    templates = scores.shape[2]
    peak = state.templates.centres(features)
    chosen = torch.where(state.own(labels), peak, templates - 1)[:, :, None]
    with torch.no_grad():
        ratio = scores - _log_mean_exp(scores)
        log_p = torch.logsumexp(ratio, 2) - math.log(templates)
        fit = ratio.gather(2, chosen)[:, :, 0]
        weight = torch.exp(fit) * (fit - log_p).clamp(min=0) / templates
    return -(weight * scores.gather(2, chosen)[:, :, 0]).mean(), state


def mi(features: Tensor, logits: Tensor, labels: Tensor, state: FilterState) -> tuple[Tensor, FilterState]:
    """Maximise the mutual information of maps and templates exactly, section 3's -MI(X; T); knows no classes."""
    return -mutual_information(_scores(features, state)).mean(), state


def gates(features: Tensor, logits: Tensor, labels: Tensor, state: FilterState) -> tuple[Tensor, FilterState]:
    """Classify once more with each filter gated by the picture's class, and keep the gates sparse (CSG)."""
    if state.classify is None:
        raise ValueError("class-specific gates need the network's head; set `state.classify`")
    member = state.member(labels)
    gate = member @ state.gate.clamp(0, 1).T / member.sum(1, keepdim=True).clamp(min=1)
    gated = state.classify(features * gate[:, :, None, None])
    density = F.relu(state.gate.abs().mean() - 0.2)
    loss = F.cross_entropy(gated, labels if labels.ndim == 1 else member / member.sum(1, keepdim=True).clamp(min=1))
    return loss + 1e-3 * state.gate.numel() * density, state


def groups(features: Tensor, logits: Tensor, labels: Tensor, state: FilterState) -> tuple[Tensor, FilterState]:
    """Keep each filter's soft region small and the regions of a class's filters alike (CGL)."""
    steepness, threshold = 4.0, -6.0
    x = features.flatten(2)
    spread = x.std((0, 2), unbiased=False).clamp(min=_TINY)[:, None]
    region = torch.sigmoid(steepness * x / spread + threshold)
    side = features.shape[3]
    number = torch.arange(x.shape[2], device=x.device)
    place = torch.stack([number // side, number % side], 1).to(x.dtype)
    share = region / region.sum(2, keepdim=True)
    centroid = share @ place
    distance = torch.cdist(centroid, place[None].expand(len(x), -1, -1))
    compact = (share * distance).sum(2) / side
    member = F.one_hot(state.learned_for, state.response.shape[1]).to(x.dtype)
    mean = torch.einsum("bkn,kc->bcn", region, member) / member.sum(0).clamp(min=1)[:, None]
    common = mean[:, state.learned_for]
    overlap = torch.minimum(region, common).sum(2) / torch.maximum(region, common).sum(2)
    return (torch.where(state.own(labels), compact + 0.1 * (1 - overlap), x.new_zeros(()))).mean(), state


FILTER_LOSSES: dict[str, FilterLoss] = {
    "plain": plain,
    "code": code,
    "paper": paper,
    "mi": mi,
    "gates": gates,
    "groups": groups,
}
