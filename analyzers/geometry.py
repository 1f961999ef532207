"""From grid cells of a conv map to pixels of the picture that was sent."""

from __future__ import annotations

from dataclasses import dataclass

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
    y = grid.offset[0] + row * grid.stride[0]
    x = grid.offset[1] + column * grid.stride[1]
    return Place(
        x=min(max(x * frame.scale_x, 0.0), float(frame.width)),
        y=min(max(y * frame.scale_y, 0.0), float(frame.height)),
        cell=_box(x, y, grid.stride, frame),
        receptive_field=_box(x, y, grid.receptive_field, frame),
    )


def area(grid: Grid, frame: Frame) -> Box:
    """Return what all cells of a map cover, in pixels of the picture; with padding it may reach beyond the picture."""
    top, left = (grid.offset[axis] - grid.stride[axis] / 2 for axis in (0, 1))
    bottom, right = (
        start + cells * step for start, cells, step in zip((top, left), grid.cells, grid.stride, strict=True)
    )
    return Box(left * frame.scale_x, top * frame.scale_y, right * frame.scale_x, bottom * frame.scale_y)


def _box(x: float, y: float, extent: tuple[float, float], frame: Frame) -> Box:
    """Return the box of `extent` (vertical, horizontal) input pixels round (x, y), clipped to the picture."""
    half_y, half_x = extent[0] / 2, extent[1] / 2
    return Box(
        left=min(max((x - half_x) * frame.scale_x, 0.0), float(frame.width)),
        top=min(max((y - half_y) * frame.scale_y, 0.0), float(frame.height)),
        right=min(max((x + half_x) * frame.scale_x, 0.0), float(frame.width)),
        bottom=min(max((y + half_y) * frame.scale_y, 0.0), float(frame.height)),
    )
