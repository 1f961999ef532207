"""`parts`: which filter fired where (Interpretable CNNs, arXiv 1710.00935).

The graph reports, for each filter, the first highest cell of its map and the value there. The peak is taken
on the map before the part template masks it; for maps >= 0 the mask does not move it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers import explanation, manifest
from analyzers.geometry import Frame, locate

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


def part_template(cells: int, beta: float = 4.0) -> npt.NDArray[np.float32]:
    """Return the positive part templates T_mu of an n x n map, peak 1, as a table (n^2, n^2).

    Row mu holds the template centred on cell mu (both row-major): max(1 - beta * L1 / n, -1), arXiv 1710.00935
    section 3 without the constant tau, which would shrink the signal of every layer.
    """
    row, column = np.divmod(np.arange(cells * cells), cells)
    distance = abs(row[:, None] - row) + abs(column[:, None] - column)
    return np.maximum(1 - beta * distance / cells, -1).astype(np.float32)


def decode(
    section: manifest.Parts,
    classes: tuple[str, ...],
    outputs: Mapping[str, npt.NDArray[Any]],
    row: int,
    frame: Frame,
) -> dict[int, explanation.Part]:
    """Return the parts that fired in picture `row` of the batch by filter number, strongest first.

    A filter whose score is not above 0 did not fire and is absent.
    """
    score, cell = outputs[section.score][row], outputs[section.cell][row]
    fired = np.flatnonzero(score > 0)
    order = fired[np.argsort(-score[fired], kind="stable")]
    return {int(k): _part(section, classes, int(k), float(score[k]), int(cell[k]), frame) for k in order}


def _part(
    section: manifest.Parts, classes: tuple[str, ...], number: int, score: float, cell: int, frame: Frame
) -> explanation.Part:
    place = locate(section.grid, cell, frame)
    return explanation.Part(
        filter=number,
        score=score,
        x=place.x,
        y=place.y,
        cell=place.cell,
        receptive_field=place.receptive_field,
        learned_for="" if section.learned_for is None else classes[section.learned_for[number]],
    )
