"""From grid cells of a conv map to pixels of the picture that was sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from analyzers.explanation import Box
from analyzers.manifest import Grid

_Along = tuple[float, ...]


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
    return places(grid, frame)[index]


def places(grid: Grid, frame: Frame) -> Mapping[int, Place]:
    """Return where each cell lies in the picture, by row-major number; each is made when it is asked for."""
    return _places(grid.cells, grid.offset, grid.stride, grid.receptive_field, frame)


class _Places(dict[int, Place]):
    """The places of one grid in pictures of one size."""

    def __init__(self, columns: int, vertical: list[_Along], horizontal: list[_Along]) -> None:
        super().__init__()
        self._columns, self._vertical, self._horizontal = columns, vertical, horizontal

    def __missing__(self, index: int) -> Place:
        row, column = divmod(index, self._columns)
        y, top, bottom, field_top, field_bottom = self._vertical[row]
        x, left, right, field_left, field_right = self._horizontal[column]
        self[index] = Place(x, y, Box(left, top, right, bottom), Box(field_left, field_top, field_right, field_bottom))
        return self[index]


def area(grid: Grid, frame: Frame) -> Box:
    """Return what all cells of a map cover, in pixels of the picture; with padding it may reach beyond the picture."""
    top, left = (grid.offset[axis] - grid.stride[axis] / 2 for axis in (0, 1))
    bottom, right = (
        start + cells * step for start, cells, step in zip((top, left), grid.cells, grid.stride, strict=True)
    )
    return Box(left * frame.scale_x, top * frame.scale_y, right * frame.scale_x, bottom * frame.scale_y)


@lru_cache(maxsize=32)  # every answer asks for dozens of places in pictures of the same few sizes
def _places(
    cells: tuple[int, int],
    offset: tuple[float, float],
    stride: tuple[float, float],
    field: tuple[float, float],
    frame: Frame,
) -> _Places:
    vertical = _along(cells[0], offset[0], stride[0], field[0], frame.scale_y, frame.height)
    horizontal = _along(cells[1], offset[1], stride[1], field[1], frame.scale_x, frame.width)
    return _Places(cells[1], vertical, horizontal)


def _along(cells: int, offset: float, stride: float, field: float, scale: float, size: int) -> list[_Along]:
    """Return, for each cell along one axis, its centre, its edges and its receptive field's, clipped to the picture."""

    def clip(place: float) -> float:
        return min(max(place * scale, 0.0), float(size))

    centres = [offset + cell * stride for cell in range(cells)]
    halves = (0.0, -stride / 2, stride / 2, -field / 2, field / 2)
    return [tuple(clip(centre + half) for half in halves) for centre in centres]
