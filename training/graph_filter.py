"""`explanatory_graph`: learn the nodes of one filter, and find them in pictures.

Filters are independent given the layer above, and each is computed on its own in the same way whatever else is
learned beside it, so that dividing the work changes no bit of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.graph_em import (
    Expected,
    Lattice,
    Sums,
    best_cells,
    expectation,
    moved,
    positions,
    spread_of,
)
from training.graph_parents import Candidates, choose_parents, follow_parents, follow_root

WINDOW = 0.15  # half the side of a node's window is 3 sigma and at most this
SPREAD = 0.15  # round a place that no parent predicts


@dataclass(frozen=True, slots=True)
class Rule:
    """How nodes are learned.

    Attributes:
        iterations: rounds of EM.
        parents: M, how many parents a node has.
        tau: the background's likelihood, share of the nodes' mean mass.
        shrinking: whether the step shrinks as 1 / sqrt(iteration), as in the authors' code.
        edge_pictures: pictures on which parents are chosen while learning, at most.
        chunk: numbers that are handled at a time, pictures x nodes x (rows + columns).
    """

    iterations: int = 8
    parents: int = 15
    tau: float = 0.1
    shrinking: bool = False
    edge_pictures: int = 500
    chunk: int = 300_000


@dataclass(frozen=True, slots=True)
class Above:
    """What the layers above say about every picture.

    Attributes:
        root: (b, 2) displacement of the whole object less its mean; None without a root.
        candidates: possible parents; None in the top layer.
    """

    root: Tensor | None
    candidates: Candidates | None

    def take(self, pictures: slice | Tensor) -> Above:
        """Return the same in some pictures."""
        return Above(
            None if self.root is None else self.root[pictures],
            None if self.candidates is None else self.candidates.take(pictures),
        )


@dataclass(frozen=True, slots=True)
class FilterNodes:
    """The nodes of one filter.

    Attributes:
        prior: (n, 2).
        sigma: (n,).
        chosen: (n, M) parents as rows into the candidates; None where the root alone predicts them.
    """

    prior: Tensor
    sigma: Tensor
    chosen: Tensor | None

    def expected(self, above: Above) -> Expected:
        """Return where they are expected in the pictures of `above`."""
        if self.chosen is None or above.candidates is None:
            return follow_root(self.prior, above.root, SPREAD)
        return follow_parents(self.prior, self.chosen, above.candidates)


def first_places(seed: tuple[int, ...], nodes: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Return distinct cells drawn at random by `seed`, as positions (nodes, 2)."""
    cells = np.random.default_rng(seed).permutation(len(rows) * len(columns))[:nodes]
    cell = torch.from_numpy(cells).to(rows.device)
    return torch.stack((rows[cell // len(columns)], columns[cell % len(columns)]), -1)


def learn_filter(activation: Tensor, lattice: Lattice, prior: Tensor, above: Above, rule: Rule) -> FilterNodes:
    """Learn a filter's nodes from where they start.

    Args:
        activation: F, (b, h, w).
        lattice: its cells.
        prior: (n, 2) start.
        above: in the same pictures.
        rule: how.
    """
    widest = 1 / len(prior) ** 0.5
    nodes = FilterNodes(prior, torch.full_like(prior[:, 0], SPREAD), None)
    few = _evenly(len(activation), rule.edge_pictures).to(activation.device)
    looked = Above(None, None) if above.candidates is None else above.take(few)
    for iteration in range(rule.iterations):
        if iteration and above.candidates is not None:
            nodes = _with_parents(nodes, activation[few], _some(lattice, few), looked, rule)
        half = (3 * nodes.sigma).clamp(max=WINDOW)
        sums: Sums | None = None
        for part in _chunks(activation, len(prior), rule.chunk):
            expected = nodes.expected(above.take(part))
            found = expectation(activation[part], lattice.take(part), expected, half, tau=rule.tau)
            if sums is None:
                sums = found
            else:
                sums.add(found)
        if sums is not None:
            step = (iteration + 1) ** -0.5 if rule.shrinking else 1.0
            prior = moved(nodes.prior, _as(sums, prior.dtype), step)
            nodes = FilterNodes(prior, spread_of(_as(sums, prior.dtype), widest), nodes.chosen)
    return nodes


def find_nodes(
    nodes: FilterNodes, activation: Tensor, lattice: Lattice, above: Above, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return in which cell each node is found, row-major (b, n), and its log score, (b, n)."""
    cells, scores = [], []
    for part in _chunks(activation, len(nodes.prior), chunk):
        cell, score = best_cells(activation[part], lattice.take(part), nodes.expected(above.take(part)))
        cells.append(cell)
        scores.append(score)
    return torch.cat(cells), torch.cat(scores)


def _with_parents(nodes: FilterNodes, activation: Tensor, lattice: Lattice, above: Above, rule: Rule) -> FilterNodes:
    assert above.candidates is not None  # noqa: S101 (the caller looked)
    cell, score = find_nodes(nodes, activation, lattice, above, rule.chunk)
    count = min(rule.parents, len(above.candidates.node))
    chosen = choose_parents(positions(cell, lattice), score, above.candidates, count)
    return FilterNodes(nodes.prior, nodes.sigma, chosen)


def _as(sums: Sums, dtype: torch.dtype) -> Sums:
    return Sums(*(value.to(dtype) for value in (sums.claimed, sums.pull, sums.weight, sums.scatter)))


def _some(lattice: Lattice, pictures: Tensor) -> Lattice:
    return lattice if len(lattice.columns) == 1 else Lattice(lattice.rows, lattice.columns[pictures])


def _evenly(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _chunks(activation: Tensor, nodes: int, numbers: int) -> Iterator[slice]:
    size = max(1, numbers // (nodes * sum(activation.shape[1:])))
    return (slice(start, start + size) for start in range(0, len(activation), size))
