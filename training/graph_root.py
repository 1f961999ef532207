"""`explanatory_graph`: the root vote, one displacement of the whole object in each picture, and whether it is mirrored.

The paper learns from pictures cropped to the object. In a whole photograph the object is anywhere, further than the
top layer's nodes can follow on their own; together they can, because they all move alike.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from analyzers.explanatory_graph import ROOT_EPS

VOTERS = 60
REACH = 0.3  # largest displacement, share of the side
STEP = 0.05
SIGMA = 0.06  # spread of a voter


def displacement_grid() -> npt.NDArray[np.float32]:
    """Return every row displacement with every column displacement, (places, 2), row-major."""
    steps = np.arange(-round(REACH / STEP), round(REACH / STEP) + 1) * STEP
    row, column = np.meshgrid(steps, steps, indexing="ij")
    return np.stack((row.ravel(), column.ravel()), -1).astype(np.float32)


def votes(activation: Tensor, prior: Tensor, rows: Tensor, columns: Tensor, displacements: Tensor) -> Tensor:
    """Return one voter's log(ROOT_EPS + sum_x F(x) N(x; prior + d)) for every displacement d, (b, places).

    Args:
        activation: F of the voter's filter, (b, h, w).
        prior: (2,) where the voter is expected.
        rows: (h,) places of the cells.
        columns: (w,) alike.
        displacements: (places, 2) of `displacement_grid`: a product, so that two matrix products do.
    """
    side = round(len(displacements) ** 0.5)
    down, across = displacements[::side, 0], displacements[:side, 1]
    y = torch.exp(-(rows - prior[0] - down[:, None]).square() / (2 * SIGMA**2))
    x = torch.exp(-(columns - prior[1] - across[:, None]).square() / (2 * SIGMA**2))
    return torch.log(ROOT_EPS + (y @ activation @ x.T)).flatten(1)


def vote(
    voters: Iterable[tuple[Tensor, Tensor]], rows: Tensor, columns: Tensor, mirrored: bool
) -> tuple[Tensor, Tensor]:
    """Return the displacement with most votes in each picture, (b, 2), and whether it is taken as mirrored, (b,).

    Args:
        voters: activation of a voter's filter (b, h, w) and its prior position (2,).
        rows: (h,).
        columns: (w,).
        mirrored: whether the mirrored layout is tried too; of equals the picture as it is wins.
    """
    displacements = torch.from_numpy(displacement_grid()).to(rows)
    tried = (columns, 1 - columns) if mirrored else (columns,)
    total: Tensor | float = 0.0
    for activation, prior in voters:
        total = total + torch.cat([votes(activation, prior, rows, c, displacements) for c in tried], 1)
    if not isinstance(total, Tensor):
        raise ValueError("a vote needs voters")
    best = total.argmax(1)
    return displacements[best % len(displacements)], best >= len(displacements)
