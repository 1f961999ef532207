"""`explanatory_graph`: the separable lattice EM of one filter (after arXiv 1708.01785, Eq. (2) to (4)).

A map is a cloud of activation: the cell x holds F(x) of it. Each of the filter's N nodes explains it by one isotropic
Gaussian whose centre follows its parents picture by picture. A Gaussian on a lattice is the outer product of one along
the rows and one along the columns, so every sum over cells is two matrix products, and no array (N, height, width) is
needed while learning. Positions are (row, column) in shares of the picture.

Axes: b pictures, n nodes of the filter, h rows, w columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from analyzers.explanatory_graph import LOG_EPS

TINY = 1e-30  # keeps 0 / 0 out where no node reaches


@dataclass(frozen=True, slots=True)
class Lattice:
    """Where a map's cells lie.

    Attributes:
        rows: (h,) vertical centres.
        columns: (b, w) horizontal ones, or (1, w) where no picture is taken as mirrored.
    """

    rows: Tensor
    columns: Tensor

    def take(self, pictures: slice) -> Lattice:
        """Return the lattice of some pictures."""
        return self if len(self.columns) == 1 else Lattice(self.rows, self.columns[pictures])


@dataclass(frozen=True, slots=True)
class Expected:
    """Where a filter's nodes are expected: log P(x|V) = log_scale - |x - centre|^2 / (2 spread^2).

    Attributes:
        centre: (b, n, 2), or (1, n, 2) where all pictures are alike.
        log_scale: (b, n) or (1, n).
        spread: (n,).
    """

    centre: Tensor
    log_scale: Tensor
    spread: Tensor

    def take(self, pictures: slice) -> Expected:
        """Return what is expected in some pictures."""
        if len(self.centre) == 1:
            return self
        return Expected(self.centre[pictures], self.log_scale[pictures], self.spread)


@dataclass(slots=True)
class Sums:
    """What an E-step leaves of the pictures it saw, float64.

    Attributes:
        claimed: (n,) activation that the node takes responsibility for.
        pull: (n, 2) the same times the distance from the centre.
        weight: (n,) sum of F P.
        scatter: (n,) sum of F P |x - centre|^2.
    """

    claimed: Tensor
    pull: Tensor
    weight: Tensor
    scatter: Tensor

    def add(self, other: Sums) -> None:
        """Add what other pictures left."""
        self.claimed += other.claimed
        self.pull += other.pull
        self.weight += other.weight
        self.scatter += other.scatter


def gaussian(places: Tensor, centre: Tensor, spread: Tensor, half: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return exp(-d^2 / (2 spread^2)), 0 beyond `half`, and the distance d along one axis, both (b, n, places).

    Args:
        places: (b or 1, places).
        centre: (b or 1, n).
        spread: (n,).
        half: (n,) half the window's side; None for no window.
    """
    distance = places[:, None, :] - centre[:, :, None]
    value = torch.exp(distance.square() * (-0.5 / spread.square())[:, None])
    return (value if half is None else value * (distance.abs() <= half[:, None])), distance


def expectation(
    activation: Tensor,
    lattice: Lattice,
    expected: Expected,
    half: Tensor | None,
    *,
    tau: float = 0.1,
    noise: float | None = None,
) -> Sums:
    """Share each cell's activation among the nodes and the background; return the sums that the M-step needs.

    Args:
        activation: F, (b, h, w), >= 0.
        lattice: where the cells are.
        expected: where the nodes are.
        half: (n,) half the side of each node's square window; None for no window.
        tau: the background's likelihood in every cell, as a share of the nodes' mean mass in that picture.
        noise: the background's likelihood as a number instead.
    """
    y, dy = gaussian(lattice.rows[None], expected.centre[..., 0], expected.spread, half)
    x, dx = gaussian(lattice.columns, expected.centre[..., 1], expected.spread, half)
    y = y * torch.exp(expected.log_scale)[..., None]
    background = tau * (y.sum(-1) * x.sum(-1)).mean(-1)[:, None, None] if noise is None else noise
    shared = activation / (y.transpose(1, 2) @ x + background + TINY)  # Eq. (2): F over the mixture
    nodes, moment = y.shape[1], y * dy
    responsible = torch.cat((y, moment), 1) @ shared
    weighted = torch.cat((y, moment * dy), 1) @ activation
    claimed, weight = responsible[:, :nodes] * x, weighted[:, :nodes] * x
    pull = torch.stack(((responsible[:, nodes:] * x).sum(-1), (claimed * dx).sum(-1)), -1)
    scatter = (weighted[:, nodes:] * x).sum(-1) + (weight * dx.square()).sum(-1)
    return Sums(*(value.double().sum(0) for value in (claimed.sum(-1), pull, weight.sum(-1), scatter)))


def moved(prior: Tensor, sums: Sums, step: float = 1.0) -> Tensor:
    """Return the prior positions after the M-step, (n, 2); nodes that claim nothing stay."""
    some = sums.claimed > 0
    shift = torch.where(some[:, None], sums.pull / torch.where(some, sums.claimed, 1)[:, None], 0)
    return (prior + step * shift).clamp(0, 1)


def spread_of(sums: Sums, widest: float) -> Tensor:
    """Return the nodes' own spreads, (n,), per axis, between a tenth of `widest` and all of it."""
    some = sums.weight > 0
    variance = torch.where(some, sums.scatter / (2 * torch.where(some, sums.weight, 1)), widest**2)
    return variance.sqrt().clamp(widest / 10, widest)


def best_cells(activation: Tensor, lattice: Lattice, expected: Expected) -> tuple[Tensor, Tensor]:
    """Return each node's best cell, row-major (b, n), and its log score there, (b, n).

    argmax, max over x of log(F(x) + LOG_EPS) + log P(x|V); of equal cells the first.
    """
    rate = (-0.5 / expected.spread.square())[:, None]
    y = (lattice.rows - expected.centre[..., 0, None]).square() * rate
    x = (lattice.columns[:, None] - expected.centre[..., 1, None]).square() * rate
    height = torch.log(activation + LOG_EPS)
    per_row = (height[:, None] + x[:, :, None]).amax(-1) + y
    score, row = per_row.max(-1)
    chosen = torch.gather(height, 1, row[..., None].expand(-1, -1, height.shape[-1])) + x
    return row * height.shape[-1] + chosen.argmax(-1), score + expected.log_scale


def positions(cell: Tensor, lattice: Lattice) -> Tensor:
    """Return where cells lie, (b, n, 2), from their row-major numbers (b, n)."""
    width = lattice.columns.shape[-1]
    columns = lattice.columns.expand(len(cell), -1)
    return torch.stack((lattice.rows[cell // width], torch.gather(columns, 1, cell % width)), -1)
