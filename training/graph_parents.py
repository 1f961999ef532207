"""`explanatory_graph`: which nodes of the layer above are a node's parents, and what they predict (Eq. (3), (4)).

Parents and child move together: a node is expected at its prior position plus the precision-weighted mean of its
parents' displacements from their own mean positions, and the less they agree the less it is expected at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.graph_em import Expected

BORDER = 0.1  # nodes whose mean position is nearer to the picture's edge make no parents
STATIC_SHARE = 0.5  # nor does this share of them, those that move least
TRIPLES = 1_000_000  # (picture, node, candidate) that are compared at a time


@dataclass(frozen=True, slots=True)
class Candidates:
    """Nodes of the layer above that may be parents, and how far from their mean positions they were.

    Attributes:
        node: (m,) their numbers.
        displacement: (b, m, 2).
        sigma: (m,) their own spreads.
    """

    node: Tensor
    displacement: Tensor
    sigma: Tensor

    def take(self, pictures: slice | Tensor) -> Candidates:
        """Return the same in some pictures."""
        return Candidates(self.node, self.displacement[pictures], self.sigma)


def choose_candidates(
    rank: npt.NDArray[np.float64],
    mean: npt.NDArray[np.float64],
    variance: npt.NDArray[np.float64],
    most: int,
    least: int,
) -> npt.NDArray[np.int64]:
    """Return the numbers of the nodes that may be parents, best first.

    Those that hardly move say nothing about where the object is, and those at the border are cut off as it moves.

    Args:
        rank: (nodes,) larger is better.
        mean: (nodes, 2) mean positions.
        variance: (nodes,) of the positions.
        most: how many to return.
        least: so many are returned if there are as many nodes, the border and stillness notwithstanding.
    """
    order = np.argsort(-rank, kind="stable")
    moves = np.ones(len(rank), np.bool_)
    moves[np.argsort(variance, kind="stable")[: int(len(rank) * STATIC_SHARE)]] = False
    inside = ((mean >= BORDER) & (mean <= 1 - BORDER)).all(1)
    for fit in (moves & inside, moves, np.ones_like(moves)):
        chosen = order[fit[order]][:most]
        if len(chosen) >= least:
            return chosen
    return order[:most]


def choose_parents(position: Tensor, log_score: Tensor, candidates: Candidates, parents: int) -> Tensor:
    """Return for each node of a filter the candidates that move most as it does, (n, parents), best first.

    The score of a candidate is the sum over pictures of S exp(-|delta - delta'|^2 / (2 mean of all such squares)).

    Args:
        position: (b, n, 2) where the nodes were found.
        log_score: (b, n) log S.
        candidates: in the same pictures.
        parents: how many to choose.
    """
    own = position - position.mean(0)
    other = candidates.displacement
    own2, other2 = own.square().sum(-1), other.square().sum(-1)
    mean = own2.mean() + other2.mean() - 2 * (own.mean(1) * other.mean(1)).sum(-1).mean()
    rate = -0.5 / mean.clamp(min=1e-12)
    weight = torch.exp(log_score - log_score.max())
    total = torch.zeros(own.shape[1], other.shape[1], dtype=torch.float64, device=own.device)
    step = max(1, TRIPLES // total.numel())
    for start in range(0, len(own), step):
        part = slice(start, start + step)
        square = torch.baddbmm(other2[part, None, :], own[part], other[part].transpose(1, 2), alpha=-2)
        alike = torch.exp((square + own2[part, :, None]) * rate)
        total += (alike * weight[part, :, None]).sum(0).double()
    return torch.sort(total, dim=1, descending=True, stable=True).indices[:, :parents]


def follow_parents(prior: Tensor, chosen: Tensor, candidates: Candidates) -> Expected:
    """Return where nodes are expected given their parents.

    Args:
        prior: (n, 2).
        chosen: (n, M) rows into `candidates`.
        candidates: in the pictures that matter.
    """
    count = chosen.shape[1]
    precision = 1 / (count * candidates.sigma[chosen].square())
    weights = torch.zeros(len(prior), len(candidates.node), dtype=prior.dtype, device=prior.device)
    weights.scatter_(1, chosen, precision)
    delta = candidates.displacement
    terms = torch.cat((delta, delta.square().sum(-1, keepdim=True)), -1).transpose(0, 1)
    summed = (weights @ terms.flatten(1)).view(len(prior), len(delta), 3).transpose(0, 1)
    variance = 1 / precision.sum(1)
    shift = summed[..., :2] * variance[:, None]
    disagreement = (summed[..., 2] - shift.square().sum(-1) / variance).clamp(min=0)
    constant = -math.log(2 * math.pi) - candidates.sigma[chosen].square().log().mean(1)
    return Expected(prior + shift, constant - disagreement / 2, variance.sqrt())


def follow_root(prior: Tensor, displacement: Tensor | None, spread: float) -> Expected:
    """Return where nodes are expected given one displacement of the whole object, (b, 2); None for none."""
    centre = prior[None] if displacement is None else prior + displacement[:, None]
    scale = torch.full(centre.shape[:2], -math.log(2 * math.pi * spread**2), dtype=prior.dtype, device=prior.device)
    return Expected(centre, scale, torch.full((len(prior),), spread, dtype=prior.dtype, device=prior.device))
