"""Part templates of maps of any shape (arXiv 1710.00935, section 3): what they are centred on and how far they reach.

Templates have peak 1: the paper's constant tau shrinks the signal of every layer. A template of steepness beta lets
pass what is nearer to its centre than side / beta cells, counted along rows and columns.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyzers.manifest import Peak
from analyzers.parts import part_template

Beta = float | Literal["per-filter"]

_TINY = 1e-9
_FIRST, _LEAST, _MOST = 2.0, 1.5, 3.0  # steepness in the released code's own coordinates, -1..1 along a side
_STEP = 0.016  # how far one batch moves it there: learning rate, factor and momentum taken together


def part_templates(rows: int, columns: int, beta: float = 4.0) -> Tensor:
    """Return the part templates of a map as a table (rows columns, rows columns), row mu centred on cell mu.

    The paper's n is the side of a square map; here it is the side of the square of equal area.
    """
    side = max(rows, columns)
    square = torch.from_numpy(part_template(side, beta * (side / math.sqrt(rows * columns))))
    inside = torch.arange(side * side).reshape(side, side)[:rows, :columns].flatten()
    return square[inside][:, inside]


def centre(x: Tensor, peak: Peak) -> Tensor:
    """Return the row-major cell that each map's template is centred on, (batch, filters, rows, columns) >= 0.

    Args:
        x: the maps.
        peak: "argmax", the first highest cell, as in the paper; or "centroid", the cell nearest to the centre of
            mass, as in the authors' code, where halves go up and an empty map has cell 0.
    """
    if peak == "argmax":
        return x.flatten(2).argmax(2)
    rows, columns = x.shape[2:]
    total = x.sum((2, 3)).clamp(min=_TINY)
    row = (x.sum(3) * torch.arange(rows, device=x.device)).sum(2) / total
    column = (x.sum(2) * torch.arange(columns, device=x.device)).sum(2) / total
    row, column = ((place + 0.5).floor().long() for place in (row, column))
    return row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)


class PartTemplates(nn.Module):
    """The part templates of a layer's filters.

    Attributes:
        rows: of the maps.
        columns: of the maps.
        peak: what a template is centred on, see `centre`.
        table: (cells, cells), row mu holds the template of centre mu, in -1..1; of steepness 1 where each filter has
            its own.
        beta: (filters,) steepness of each filter; None where all have the same.
    """

    table: Tensor
    positive: Tensor
    squared: Tensor

    def __init__(self, rows: int, columns: int, filters: int, beta: Beta = 4.0, peak: Peak = "argmax") -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.peak: Peak = peak
        table = part_templates(rows, columns, 1.0 if isinstance(beta, str) else beta)
        self.register_buffer("table", table, persistent=False)
        # For maps >= 0, max(x T, 0) = x max(T, 0): clamping the table saves an operation.
        self.register_buffer("positive", table.clamp(min=0), persistent=False)
        self.beta: Tensor | None
        if isinstance(beta, str):
            side = math.sqrt(rows * columns)
            self._unit = 2 * side / max(side - 1, 1)  # beta of steepness 1 along -1..1
            self.register_buffer("beta", torch.full((filters,), _FIRST * self._unit))
            place = torch.cartesian_prod(torch.arange(float(rows)), torch.arange(float(columns))).reshape(-1, 2)
            self.register_buffer("squared", (place[:, None] - place).square().sum(2), persistent=False)
        else:
            self.beta = None

    def centres(self, x: Tensor) -> Tensor:
        """Return the cell that each map's template is centred on, (batch, filters)."""
        return centre(x.detach(), self.peak)

    def forward(self, cell: Tensor) -> Tensor:
        """Return the template of each cell: (batch, filters) -> (batch, filters, cells), in -1..1."""
        chosen = F.embedding(cell, self.table)
        return chosen if self.beta is None else (1 - self.beta[:, None] * (1 - chosen)).clamp(min=-1)

    def mask(self, x: Tensor) -> Tensor:
        """Keep of each map what lies under its template, max(x T, 0), for x >= 0 of any number of rows."""
        cell = self.centres(x)
        window = F.embedding(cell, self.positive) if self.beta is None else self(cell).clamp(min=0)
        return x * window.to(x.dtype).reshape(x.shape)

    def scores(self, x: Tensor) -> Tensor:
        """Return <x, T_mu> for every mu, of flat maps (batch, filters, cells): the same shape."""
        table = self.table.to(x.dtype)
        if self.beta is None:
            return x @ table.T
        every = (1 - self.beta.to(x.dtype)[:, None, None] * (1 - table)).clamp(min=-1)
        return torch.einsum("bkn,kmn->bkm", x, every)

    @property
    def gain(self) -> float:
        """Number of cells over the cells' worth that a template in the middle lets pass, as templates are now."""
        middle = (self.rows // 2) * self.columns + self.columns // 2
        passed = self.positive[middle]
        if self.beta is not None:
            passed = (1 - self.beta.mean() * (1 - self.table[middle])).clamp(min=0)
        return len(passed) / float(passed.sum())

    @torch.no_grad()
    def adapt(self, x: Tensor, own: Tensor) -> None:
        """Move each filter's beta a step towards 3 / spread of its maps, as the authors' code does, in 1.5..3 there.

        Args:
            x: maps (batch, filters, rows, columns), >= 0.
            own: (batch, filters), whether the picture has the filter's class.
        """
        if self.beta is None:
            return
        cell, flat = self.centres(x), x.flatten(2)
        spread = ((F.embedding(cell, self.squared) * flat).sum(2) / flat.sum(2).clamp(min=_TINY)).sqrt()
        weight = own * (flat * self(cell)).sum(2).clamp(min=0)
        mean = (weight * spread).sum(0) / weight.sum(0).clamp(min=_TINY)
        target = (3 / mean.clamp(min=_TINY)).clamp(_LEAST, _MOST) * self._unit
        self.beta.copy_(torch.where(weight.sum(0) > 0, torch.lerp(self.beta, target, _STEP), self.beta))
