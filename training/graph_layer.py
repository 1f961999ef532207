"""`explanatory_graph`: from the nodes of single filters to a layer, with its calibration and best pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from analyzers.explanatory_graph import QUANTILES, GraphLayer
from analyzers.manifest import Grid
from training.graph_blocks import Block
from training.graph_em import Lattice
from training.graph_filter import Above, FilterNodes

TOP_PICTURES = 50
PRESENT_QUANTILE = 0.05  # of the pictures that a node was learned from
ABSENT_QUANTILE = 0.95  # of the pictures of reference
MIN_REFERENCE = 20
SAME_SHARE = 0.9  # a node that is found in a sibling's cell in so many pictures repeats it
REPEATS = 1000.0  # so far behind all others are nodes that repeat a better one

AnyArray = npt.NDArray[Any]


def pack(
    number: int, scale: float, floor: float, nodes: FilterNodes, above: Above, cell: Tensor, score: Tensor
) -> Block:
    """Return the nodes of one filter as a block; `cell` and `score` are (pictures, nodes)."""
    parents = np.zeros((len(nodes.prior), 0), np.int32)
    if nodes.chosen is not None and above.candidates is not None:
        parents = above.candidates.node[nodes.chosen].cpu().numpy().astype(np.int32)
    spread = nodes.expected(above.take(slice(1))).spread
    return Block(
        filter=np.full(len(nodes.prior), number, np.int32),
        prior=nodes.prior.cpu().numpy().astype(np.float32),
        sigma=nodes.sigma.cpu().numpy().astype(np.float32),
        spread=spread.cpu().numpy().astype(np.float32),
        parents=parents,
        cell=cell.T.cpu().numpy().astype(np.int32),
        score=score.T.cpu().numpy().astype(np.float32),
        factors=np.array([[number, scale, floor]], np.float32),
    )


def join(blocks: Sequence[Block], pictures: int) -> Block:
    """Return blocks of single filters as one; none give an empty one."""
    if not blocks:
        none = np.zeros(0, np.float32)
        whole = np.zeros((0, pictures), np.int32)
        empty = none.astype(np.int32)
        return Block(
            empty,
            none.reshape(0, 2),
            none,
            none,
            empty.reshape(0, 0),
            whole,
            whole.astype(np.float32),
            none.reshape(0, 3),
        )
    return Block(*(np.concatenate([getattr(block, f.name) for block in blocks]) for f in fields(Block)))


@dataclass(frozen=True, slots=True)
class LearnedLayer:
    """The nodes of a layer of one graph, without their trails; fields as in `GraphLayer`.

    Attributes:
        variance: (v,) of the positions over the own pictures, summed over the axes.
        score: (v,) log of the mean of S over the own pictures; `rank` without regard to repetitions.
        factors: (filters, 3) number, scale, floor.
    """

    filter: AnyArray
    prior: AnyArray
    sigma: AnyArray
    spread: AnyArray
    parents: AnyArray
    mean: AnyArray
    variance: AnyArray
    score: AnyArray
    rank: AnyArray
    threshold: AnyArray
    quantiles: AnyArray
    top_picture: AnyArray
    top_score: AnyArray
    top_position: AnyArray
    factors: AnyArray

    @classmethod
    def of(cls, blocks: Sequence[LearnedLayer]) -> LearnedLayer:
        """Return the blocks of a layer as one."""
        some = [block for block in blocks if len(block.filter)] or list(blocks[:1])
        return cls(*(np.concatenate([getattr(block, f.name) for block in some]) for f in fields(cls)))


def summarise(block: Block, lattice: Lattice, own: int, pictures: npt.NDArray[np.int64]) -> LearnedLayer:
    """Return what the graph keeps of a block.

    Args:
        block: nodes and where they were found.
        lattice: the layer's cells in these pictures.
        own: how many of the pictures, the first ones, the graph is learned from.
        pictures: their numbers.
    """
    rows, columns = lattice.rows.cpu().numpy(), lattice.columns.cpu().numpy()
    width = columns.shape[1]
    seen = block.cell[:, :own]
    across = columns[np.arange(own) if len(columns) > 1 else np.zeros(own, np.int64), seen % width]
    place = np.stack((rows[seen // width], across), -1).astype(np.float64)
    score = block.score[:, :own].astype(np.float64)
    threshold = np.quantile(score, PRESENT_QUANTILE, axis=1)
    if block.score.shape[1] - own >= MIN_REFERENCE:
        threshold = np.maximum(threshold, np.quantile(block.score[:, own:], ABSENT_QUANTILE, axis=1))
    order = np.argsort(-score, axis=1, kind="stable")[:, :TOP_PICTURES]
    top = place[np.arange(len(place))[:, None], order]
    shown = np.stack((top[..., 0], np.take_along_axis(_as_it_is(columns, seen, width), order, 1)), -1)
    highest = score.max(1, keepdims=True)
    strength = highest[:, 0] + np.log(np.exp(score - highest).mean(1))
    return LearnedLayer(
        filter=block.filter,
        prior=block.prior,
        sigma=block.sigma,
        spread=block.spread,
        parents=block.parents,
        mean=place.mean(1),
        variance=place.var(1).sum(-1),
        score=strength,
        rank=strength - REPEATS * _repeats(block.filter, seen, strength),
        threshold=threshold,
        quantiles=np.quantile(score, np.linspace(0, 1, QUANTILES), axis=1).T,
        top_picture=pictures[:own][order],
        top_score=np.take_along_axis(score, order, 1),
        top_position=shown,
        factors=block.factors,
    )


def _repeats(number: AnyArray, cell: AnyArray, strength: AnyArray) -> AnyArray:
    """Return which nodes are nearly always found where a better one of the same filter is, (v,)."""
    result = np.zeros(len(number), np.bool_)
    for one in np.unique(number):
        nodes = np.flatnonzero(number == one)
        nodes = nodes[np.argsort(-strength[nodes], kind="stable")]
        kept: list[int] = []
        for node in nodes.tolist():
            result[node] = bool(kept) and (cell[kept] == cell[node]).mean(1).max() >= SAME_SHARE
            if not result[node]:
                kept.append(node)
    return result


def _as_it_is(columns: AnyArray, cell: AnyArray, width: int) -> AnyArray:
    """Return the horizontal places of cells in the pictures as they are, whether or not they are taken as mirrored."""
    plain = columns[0] if columns[0, 0] <= columns[0, -1] else 1 - columns[0]
    return np.asarray(plain[cell % width])


def assemble(tensor: str, grid: Grid, filters: int, learned: Sequence[LearnedLayer]) -> GraphLayer:
    """Return the layer of all graphs; the nodes and parents that some have fewer of are padded."""
    scale, floor = np.ones(filters, np.float32), np.zeros(filters, np.float32)
    for layer in learned:
        number = layer.factors[:, 0].astype(np.int64)
        scale[number], floor[number] = layer.factors[:, 1], layer.factors[:, 2]
    pads = {"filter": -1, "parents": -1, "top_picture": -1, "sigma": 1, "spread": 1}
    stacked = {
        f.name: _stack([getattr(layer, f.name) for layer in learned], pads.get(f.name, 0))
        for f in fields(LearnedLayer)
        if f.name not in {"variance", "score", "factors"}
    }
    return GraphLayer(tensor=tensor, grid=grid, scale=scale, floor=floor, **stacked)


def _stack(arrays: Sequence[AnyArray], pad: int) -> AnyArray:
    shape = np.max([array.shape for array in arrays], axis=0)
    kind = np.int64 if arrays[0].dtype.kind == "i" else np.float32
    whole = np.full((len(arrays), *shape), pad, kind)
    for one, array in zip(whole, arrays, strict=True):
        one[tuple(slice(length) for length in array.shape)] = array
    return whole
