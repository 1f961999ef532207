"""`parts`: which filter fired where (Interpretable CNNs, arXiv 1710.00935).

The graph reports, for each filter, the peak of its map and the map's highest value. The peak, the first highest cell
or the one nearest to the centre of mass, is taken on the map before the part template masks it: it is the template's
own centre.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers import explanation, manifest
from analyzers.geometry import Frame, places
from analyzers.manifest import Peak

# ArgMax, not TopK: both take the first index on ties in every runtime (TopK does not).
FRAGMENT = """
<ir_version: 10, opset_import: ["" : 20]>
parts (float[batch, filters, height, width] map) => (int64[batch, filters] cell, float[batch, filters] score)
{
    flat_shape = Constant <value_ints: ints = [0, 0, -1]> ()
    flat = Reshape (map, flat_shape)
    cell = ArgMax <axis: int = 2, keepdims: int = 0> (flat)
    cells_axis = Constant <value_ints: ints = [2]> ()
    score = ReduceMax <keepdims: int = 0> (flat, cells_axis)
}
"""


# As in the authors' code: halves go up, and an empty map has cell 0.
CENTROID_FRAGMENT = """
<ir_version: 10, opset_import: ["" : 20]>
parts (float[batch, filters, height, width] map) => (int64[batch, filters] cell, float[batch, filters] score)
{
    row_axis = Constant <value_ints: ints = [2]> ()
    column_axis = Constant <value_ints: ints = [3]> ()
    zero = Constant <value_float: float = 0.0> ()
    half = Constant <value_float: float = 0.5> ()
    one = Constant <value_float: float = 1.0> ()
    tiny = Constant <value_float: float = 1e-9> ()
    by_row = ReduceSum <keepdims: int = 0> (map, column_axis)
    by_column = ReduceSum <keepdims: int = 0> (map, row_axis)
    sum = ReduceSum <keepdims: int = 0> (by_row, row_axis)
    total = Max (sum, tiny)
    height = Shape <start: int = 2, end: int = 3> (map)
    width = Shape <start: int = 3, end: int = 4> (map)
    rows = Squeeze (height)
    columns = Squeeze (width)
    rows_float = Cast <to: int = 1> (rows)
    columns_float = Cast <to: int = 1> (columns)
    row_number = Range (zero, rows_float, one)
    column_number = Range (zero, columns_float, one)
    row_moment_each = Mul (by_row, row_number)
    column_moment_each = Mul (by_column, column_number)
    row_moment = ReduceSum <keepdims: int = 0> (row_moment_each, row_axis)
    column_moment = ReduceSum <keepdims: int = 0> (column_moment_each, row_axis)
    row_place = Div (row_moment, total)
    column_place = Div (column_moment, total)
    row_up = Add (row_place, half)
    column_up = Add (column_place, half)
    row_floor = Floor (row_up)
    column_floor = Floor (column_up)
    row = Cast <to: int = 7> (row_floor)
    column = Cast <to: int = 7> (column_floor)
    before = Mul (row, columns)
    cell = Add (before, column)
    cells_axes = Constant <value_ints: ints = [2, 3]> ()
    score = ReduceMax <keepdims: int = 0> (map, cells_axes)
}
"""

FRAGMENTS: dict[Peak, str] = {"argmax": FRAGMENT, "centroid": CENTROID_FRAGMENT}


def part_template(cells: int, beta: float = 4.0) -> npt.NDArray[np.float32]:
    """Return the positive part templates T_mu of an n x n map, peak 1, as a table (n^2, n^2).

    Row mu holds the template centred on cell mu (both row-major): max(1 - beta * L1 / n, -1), arXiv 1710.00935
    section 3 without the constant tau, which would shrink the signal of every layer.
    """
    row, column = np.divmod(np.arange(cells * cells), cells)
    distance = abs(row[:, None] - row) + abs(column[:, None] - column)
    return np.maximum(1 - beta * distance / cells, -1).astype(np.float32)


def misplaced(maps: npt.NDArray[np.float32], cell: npt.NDArray[np.int64], peak: Peak) -> npt.NDArray[np.bool_]:
    """Return (batch, filters): whether a reported cell is not the peak of its map (batch, filters, height, width).

    A centre of mass counts as lying in both cells within 0.001 of the line between them, where rounding decides.
    """
    flat = maps.reshape(*maps.shape[:2], -1).astype(np.float64)
    if peak == "argmax":
        return np.asarray(flat.argmax(2) != cell)
    places = np.indices(maps.shape[2:]).reshape(2, -1)
    mass = np.maximum(flat.sum(2), 1e-9)
    away = [abs(flat @ place / mass - place[cell]) for place in places]
    return np.asarray(np.maximum(*away) > 0.501)


class Fired(Mapping[int, explanation.Part]):
    """The parts that fired in one picture by filter number, strongest first; each is made when it is asked for."""

    def __init__(
        self,
        section: manifest.Parts,
        classes: tuple[str, ...],
        score: npt.NDArray[np.float32],
        cell: npt.NDArray[np.int64],
        frame: Frame,
    ) -> None:
        self._fired = np.flatnonzero(score > 0)
        self._classes, self._learned_for = classes, section.learned_for
        self._places = places(section.grid, frame)
        self._score, self._cell = score, cell
        self._made: dict[int, explanation.Part] = {}  # several ledgers name the same one

    def __getitem__(self, number: int) -> explanation.Part:
        if (made := self._made.get(number)) is not None:
            return made
        score = float(self._score[number]) if 0 <= number < len(self._score) else 0.0
        if not score > 0:
            raise KeyError(number)
        place = self._places[int(self._cell[number])]
        self._made[number] = explanation.Part(
            filter=number,
            score=score,
            x=place.x,
            y=place.y,
            cell=place.cell,
            receptive_field=place.receptive_field,
            learned_for="" if self._learned_for is None else self._classes[self._learned_for[number]],
        )
        return self._made[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._order(len(self._fired)))

    def __len__(self) -> int:
        return len(self._fired)

    def strongest(self, count: int) -> tuple[explanation.Part, ...]:
        """Return the strongest ones; of equal ones those with the lower number."""
        return tuple(self[number] for number in self._order(count))

    def _order(self, count: int) -> list[int]:
        fired, score = self._fired, self._score[self._fired]
        if count < len(fired):
            least = np.partition(score, -count)[-count] if count else np.inf
            fired, score = fired[score >= least], score[score >= least]
        order: list[int] = fired[np.argsort(-score, kind="stable")][:count].tolist()
        return order


def decode(
    section: manifest.Parts,
    classes: tuple[str, ...],
    outputs: Mapping[str, npt.NDArray[Any]],
    row: int,
    frame: Frame,
) -> Fired:
    """Return the parts that fired in picture `row` of the batch by filter number, strongest first.

    A filter whose score is not above 0 did not fire and is absent.
    """
    return Fired(section, classes, outputs[section.score][row], outputs[section.cell][row], frame)
