"""From grid cells of a conv map to pixels of the picture that was sent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from analyzers.explanation import Box
from analyzers.manifest import Grid


@dataclass(frozen=True, slots=True)
class Frame:
    """How the model's input maps onto the picture that was sent.

    Attributes:
        scale_x: picture pixels per input pixel, horizontally.
        scale_y: the same vertically.
        width: width of the picture in pixels.
        height: its height.
    """

    scale_x: float
    scale_y: float
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Place:
    """A cell in pixels of the picture: its centre, its own square and its receptive field."""

    x: float
    y: float
    cell: Box
    receptive_field: Box


def locate(grid: Grid, index: int, frame: Frame) -> Place:
    """Return where the cell with row-major `index` lies in the picture."""
    row, column = divmod(index, grid.cells[1])
    vertical = _along(
        grid.cells[0], grid.offset[0], grid.stride[0], grid.receptive_field[0], frame.scale_y, frame.height
    )
    horizontal = _along(
        grid.cells[1], grid.offset[1], grid.stride[1], grid.receptive_field[1], frame.scale_x, frame.width
    )
    y, top, bottom, field_top, field_bottom = vertical[row]
    x, left, right, field_left, field_right = horizontal[column]
    return Place(x, y, Box(left, top, right, bottom), Box(field_left, field_top, field_right, field_bottom))


def area(grid: Grid, frame: Frame) -> Box:
    """Return what all cells of a map cover, in pixels of the picture; with padding it may reach beyond the picture."""
    top, left = (grid.offset[axis] - grid.stride[axis] / 2 for axis in (0, 1))
    bottom, right = (
        start + cells * step for start, cells, step in zip((top, left), grid.cells, grid.stride, strict=True)
    )
    return Box(left * frame.scale_x, top * frame.scale_y, right * frame.scale_x, bottom * frame.scale_y)


@lru_cache(maxsize=256)  # an answer asks for dozens of places on the same two axes
def _along(
    cells: int, offset: float, stride: float, field: float, scale: float, size: int
) -> tuple[tuple[float, ...], ...]:
    """Return, for each cell along one axis, its centre, its edges and its receptive field's, clipped to the picture."""

    def clip(place: float) -> float:
        return min(max(place * scale, 0.0), float(size))

    centres = [offset + cell * stride for cell in range(cells)]
    return tuple(
        tuple(map(clip, (centre, centre - stride / 2, centre + stride / 2, centre - field / 2, centre + field / 2)))
        for centre in centres
    )
