"""Part interpretability of filters (arXiv 1710.00935 section 5.2.1): do a filter's regions cover a part?

A filter's strongest 0.5 % of map cells, over all pictures, light up regions of the picture. It is associated
with a part in a picture where its region and the part overlap with IoU > 0.2; its interpretability is the share
of pictures, among those that show the part, for its best part. Part masks are boxes here: where the true
outlines differ from their boxes, so do the figures from the paper's.

Maps are (pictures, filters, height, width), after ReLU and after the part template where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.metrics import AnyFloats, BoolArray, FloatArray, best_landmark

THRESHOLD_SHARE = 0.005
MIN_IOU = 0.2
RASTER = 64  # the picture is compared on a raster of 64 x 64 points

Float32Array = npt.NDArray[np.float32]
Region = Callable[[npt.NDArray[np.floating[Any]], FloatArray], BoolArray]
"""From maps (filters, height, width) and thresholds (filters,) to regions (filters, raster points)."""


@dataclass(frozen=True, slots=True)
class Plane:
    """The picture plane and where the cells of a map lie on it, in pixels.

    Attributes:
        size: (height, width) of the picture.
        rows: (map height,) vertical centres of the cells.
        columns: (map width,) horizontal centres.
        raster: points per side at which regions are compared.
    """

    size: tuple[int, int]
    rows: FloatArray
    columns: FloatArray
    raster: int = RASTER

    @property
    def centres(self) -> FloatArray:
        """Centres (x, y) of all cells, row-major, (cells, 2)."""
        y, x = np.meshgrid(self.rows, self.columns, indexing="ij")
        return np.stack((x.ravel(), y.ravel()), -1)

    @property
    def points(self) -> tuple[FloatArray, FloatArray]:
        """Coordinates x and y of the raster points, each (raster,)."""
        middle = (np.arange(self.raster) + 0.5) / self.raster
        return middle * self.size[1], middle * self.size[0]


def activation_threshold(maps: AnyFloats, share: float = THRESHOLD_SHARE) -> FloatArray:
    """Return T_f with count(x > T_f) <= share m <= count(x >= T_f) over a filter's m cells in all pictures.

    Args:
        maps: (pictures, filters, height, width).
        share: of the cells.

    Returns:
        (filters,); never below 0, since a cell that did not fire lights nothing up.
    """
    flat = np.moveaxis(maps, 1, 0).reshape(maps.shape[1], -1)
    rank = flat.shape[1] - 1 - int(share * flat.shape[1] + 1e-9)
    return np.maximum(np.partition(flat, rank, axis=1)[:, rank], 0).astype(np.float64)


def disc(plane: Plane, radius: float) -> Region:
    """Return the paper's region: discs of `radius` pixels round the cells above the threshold."""
    around = discs(plane, plane.centres, radius)

    def region(maps: npt.NDArray[np.floating[Any]], threshold: FloatArray) -> BoolArray:
        active = maps.reshape(len(maps), -1) > threshold[:, None]
        covered = np.zeros((len(maps), around.shape[1]), np.bool_)
        for cell in np.flatnonzero(active.any(0)):
            covered[active[:, cell]] |= around[cell]
        return covered

    return region


def bilinear(plane: Plane) -> Region:
    """Return Network Dissection's region: the map enlarged bilinearly, then cut at the threshold.

    Beyond the outermost cell centres the map goes on as it is there.
    """
    x, y = plane.points
    across, down = _interpolation(plane.columns, x), _interpolation(plane.rows, y)

    def region(maps: npt.NDArray[np.floating[Any]], threshold: FloatArray) -> BoolArray:
        large = down @ maps.astype(np.float64) @ across.T
        return np.asarray(large.reshape(len(maps), -1) > threshold[:, None])

    return region


def discs(plane: Plane, places: FloatArray, radius: float) -> BoolArray:
    """Return which raster points lie within `radius` of each place (x, y), (places, raster points)."""
    x, y = plane.points
    squares = (y - places[:, 1, None])[:, :, None] ** 2 + (x - places[:, 0, None])[:, None] ** 2
    return np.asarray(squares.reshape(len(places), -1) <= radius**2)


def box_masks(plane: Plane, box: AnyFloats) -> BoolArray:
    """Return which raster points lie in boxes x0, y0, x1, y1 in pixels (..., 4), (..., raster points)."""
    x, y = plane.points
    box = box[..., None]
    inside_x = (x >= box[..., 0, :]) & (x < box[..., 2, :])
    inside_y = (y >= box[..., 1, :]) & (y < box[..., 3, :])
    return np.asarray((inside_y[..., :, None] & inside_x[..., None, :]).reshape(*box.shape[:-2], -1))


def iou(region: BoolArray, part: BoolArray) -> FloatArray:
    """Return |S_f & S_k| / |S_f | S_k| of regions (filters, points) and masks (parts, points), (filters, parts)."""
    shared = np.stack([np.count_nonzero(region & one, axis=1) for one in part], -1)
    either = np.count_nonzero(region, axis=1)[:, None] + np.count_nonzero(part, axis=1) - shared
    return np.asarray(shared / np.maximum(either, 1))


def associations(maps: AnyFloats, box: AnyFloats, plane: Plane, region: Region, min_iou: float = MIN_IOU) -> BoolArray:
    """Return in which pictures each filter is associated with each part: IoU > `min_iou`, strictly.

    Args:
        maps: (pictures, filters, height, width), all of one class; the threshold is found on them.
        box: (pictures, parts, 4) in pixels, NaN where a part is not marked.
        plane: geometry.
        region: `disc` or `bilinear`.
        min_iou: 0.2 in the paper, 0.04 in Network Dissection.

    Returns:
        (pictures, filters, parts); False where a part is not marked.
    """
    threshold = activation_threshold(maps)
    rows = [iou(region(picture, threshold), part) for picture, part in zip(maps, box_masks(plane, box), strict=True)]
    return np.asarray(np.stack(rows) > min_iou)


def single_disc_associations(
    cell: npt.NDArray[np.integer[Any]],
    strength: AnyFloats,
    table: BoolArray,
    cells: int,
    share: float = THRESHOLD_SHARE,
) -> BoolArray:
    """Return the associations of made-up maps with one disc each: what controls score under the same threshold.

    A made-up map is 0 but for one place of height `strength`, so that the threshold lets the strongest
    pictures through and no more of them than a real filter could have.

    Args:
        cell: (pictures, filters) the place, into the second axis of `table`; -1 for none.
        strength: (pictures, filters).
        table: (pictures, places, parts) whether a disc at that place is associated with the part.
        cells: cells of the map.
        share: of the cells that light up.
    """
    strength = np.where(cell < 0, 0, np.maximum(strength, 0))
    budget = int(share * len(strength) * cells + 1e-9)
    lit = strength > 0
    if budget < len(strength):
        rank = len(strength) - 1 - budget
        lit &= strength > np.partition(strength, rank, axis=0)[rank]
    return np.asarray(table[np.arange(len(cell))[:, None], cell] & lit[..., None])


def part_interpretability(hits: BoolArray, visible: BoolArray, weight: AnyFloats | None = None) -> FloatArray:
    """Return P_f = max_k P_fk, P_fk the share of pictures showing part k with which filter f is associated.

    Args:
        hits: (pictures, filters, parts) of `associations`.
        visible: (pictures, parts) whether the part is marked.
        weight: (pictures,) how often each picture counts; once if not given.

    Returns:
        (filters,); NaN where no part is marked.
    """
    counted = visible * (np.ones(len(hits)) if weight is None else weight)[:, None]
    total = counted.sum(0)
    share = np.einsum("nfk,nk->fk", hits, counted) / np.where(total > 0, total, np.nan)
    return best_landmark(share, lower_is_better=False)


def _interpolation(centres: FloatArray, at: FloatArray) -> FloatArray:
    """Return the matrix (at, centres) that interpolates linearly between values at `centres`."""
    return np.stack([np.interp(at, centres, unit) for unit in np.eye(len(centres))], -1)
