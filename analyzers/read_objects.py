"""From marked objects in photographs to `Pictures`: what the readers of data sets have in common.

A crop is the tight object box stretched to a square, as the reader of arXiv 1710.00935 cuts it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil
from operator import attrgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from analyzers.check_pictures import Unreadable, refuse_empty_classes, refuse_unreadable
from analyzers.errors import DataError
from analyzers.pictures import Float32Array, PartMarks, Pictures
from analyzers.pixels import DEFAULT_MAX_PIXELS, FORMATS
from analyzers.progress import track
from analyzers.read_splits import groups, split_by_group

Box = tuple[float, float, float, float]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read a data set.

    Attributes:
        crop: cut out each object; otherwise each photograph is one picture, with the label and marks of its largest
            object, and its file is passed on as it is.
        size: longest side of a crop in pixels; a smaller object is not enlarged beyond its own longer side.
        min_side: drop objects whose box is smaller than the square of this side, in pixels.
        test_share: about how much of the photographs to test on, 0..1, where the data set has no split of its own.
        seed: of that split.
        unreadable: "refuse" photographs that cannot be read, or "skip" them.
    """

    crop: bool = True
    size: int = 256
    min_side: int = 50
    test_share: float = 0.3
    seed: int = 0
    unreadable: Unreadable = "refuse"


@dataclass(frozen=True, slots=True)
class MarkedObject:
    """An object in a photograph; all positions in pixels of the file as it is stored, from its upper left corner.

    Attributes:
        file: the photograph.
        label: the object's class.
        box: edges x0, y0, x1, y1 of its tight box.
        xy: (parts, 2) centres (x, y); NaN where a part is not marked.
        part_box: (parts, 4) edges x0, y0, x1, y1; NaN where it has none.
        split: its number in `SPLITS` if the data set says so.
    """

    file: Path
    label: int
    box: Box
    xy: Float32Array
    part_box: Float32Array
    split: int | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a data set's index files say.

    Attributes:
        title: the data set's name.
        root: its folder.
        names: class names by label.
        part_names: the parts that are marked, none if it has no marks.
        objects: in any order.
    """

    title: str
    root: Path
    names: tuple[str, ...]
    part_names: tuple[str, ...]
    objects: Sequence[MarkedObject]


def centres(box: Float32Array) -> Float32Array:
    """Return the centres (..., 2) x, y of boxes (..., 4) x0, y0, x1, y1."""
    centre: Float32Array = box.reshape(*box.shape[:-1], 2, 2).mean(-2, dtype=np.float32)
    return centre


def to_pictures(listing: Listing, options: ReadOptions) -> Pictures:
    """Read the photographs of a listing.

    Raises:
        DataError: photographs cannot be read and are not to be skipped, or a class has no picture.
    """
    files = [(file, list(objects)) for file, objects in groupby(sorted(listing.objects, key=_file), _file)]
    rows: list[_Row] = []
    failures = []
    for file, objects in track(files, f"Reading {listing.title}", len(files)):
        name = file.relative_to(listing.root).as_posix()
        try:
            rows += _read(file, name, objects, options)
        except _DAMAGE as error:
            failures.append(f"{name} ({_reason(error)})")
    refuse_unreadable(failures, len(files), options.unreadable)
    group = groups([row.digest for row in rows])
    split, stays = split_by_group(
        group, [row.name for row in rows], [row.official for row in rows], options.test_share, options.seed
    )
    if not options.crop:
        stays &= _largest(rows, group.tolist(), stays.tolist())
    label = np.array([row.label for row in rows], np.int64)
    refuse_empty_classes(listing.names, label[stays])
    parts = PartMarks(listing.part_names, np.stack([row.xy for row in rows]), np.stack([row.part_box for row in rows]))
    return Pictures(
        names=listing.names,
        encoded=tuple(row.encoded for row in rows),
        label=label,
        split=split,
        group=group,
        parts=parts if listing.part_names else None,
    ).take(np.flatnonzero(stays))


@dataclass(frozen=True, slots=True)
class _Row:
    """An object as a picture: marks are in shares of the picture."""

    name: str
    digest: bytes = field(repr=False)
    encoded: bytes = field(repr=False)
    label: int
    official: int | None
    area_px: float
    xy: Float32Array
    part_box: Float32Array


def _read(file: Path, name: str, objects: Sequence[MarkedObject], options: ReadOptions) -> list[_Row]:
    """Return a photograph's objects that are large enough; nothing is decoded where nothing is cut."""
    rows = []
    encoded = file.read_bytes()
    digest = hashlib.sha256(encoded).digest()
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if image.width * image.height > DEFAULT_MAX_PIXELS:
            raise DataError(f"{image.width} x {image.height} pixels, more than the limit of {DEFAULT_MAX_PIXELS}")
        whole = (0.0, 0.0, float(image.width), float(image.height))
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        rgb = image.convert("RGB") if options.crop or turned else None
    for each in objects:
        box = _inside(each.box, whole)
        area = max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
        if area < max(options.min_side**2, 1):
            continue
        frame = box if options.crop else whole
        if rgb is None:
            picture = encoded
        elif options.crop:
            side = min(options.size, ceil(max(box[2] - box[0], box[3] - box[1])))
            picture = _jpeg(rgb.resize((side, side), Image.Resampling.BILINEAR, box=box))
        else:
            picture = _jpeg(rgb)  # marks are in the stored frame, so the turn must not be applied later
        xy, part_box = _carry(each.xy, each.part_box, frame)
        rows.append(_Row(name, digest, picture, each.label, each.split, area, xy, part_box))
    return rows


def _carry(xy: Float32Array, part_box: Float32Array, frame: Box) -> tuple[Float32Array, Float32Array]:
    """Turn pixels of the photograph into shares of the frame; parts whose centre is outside lose their mark."""
    corner, opposite = np.array(frame[:2], np.float32), np.array(frame[2:], np.float32)
    xy = (xy - corner) / (opposite - corner)
    part_box = ((part_box.reshape(-1, 2, 2) - corner) / (opposite - corner)).clip(0, 1).reshape(-1, 4)
    seen = ((xy >= 0) & (xy <= 1)).all(-1, keepdims=True)
    return np.where(seen, xy, np.float32(np.nan)), np.where(seen, part_box, np.float32(np.nan))


def _inside(box: Box, whole: Box) -> Box:
    return max(box[0], whole[0]), max(box[1], whole[1]), min(box[2], whole[2]), min(box[3], whole[3])


def _largest(rows: Sequence[_Row], group: Sequence[int], stays: Sequence[bool]) -> BoolArray:
    """Mark the largest object of each photograph, the first of equals."""
    best: dict[int, int] = {}
    for row, number in enumerate(group):
        if stays[row] and (number not in best or rows[row].area_px > rows[best[number]].area_px):
            best[number] = row
    chosen = np.zeros(len(rows), np.bool_)
    chosen[list(best.values())] = True
    return chosen


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "no JPEG, PNG or WebP"
    return str(error)[:120] or type(error).__name__


# Pillow's decoders raise any of these on damaged files.
_DAMAGE = (
    DataError, OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, MemoryError,
    Image.DecompressionBombError,
)  # fmt: skip
_file = attrgetter("file")
