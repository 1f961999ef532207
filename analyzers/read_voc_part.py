"""PASCAL VOC-Part: the six animals of VOC 2010 with a mask for each object and each of its parts.

Parts are merged as arXiv 1710.00935 does, by the part numbers of its code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers.errors import DataError
from analyzers.pictures import Float32Array, Pictures
from analyzers.progress import track
from analyzers.read_matlab import listed, read_matlab
from analyzers.read_objects import Box, Listing, MarkedObject, ReadOptions, centres, to_pictures
from analyzers.read_splits import TEST, TRAIN

Groups = Mapping[str, Mapping[str, tuple[str, ...]]]

_HEAD = ("head", "leye", "reye", "lear", "rear")
_CAT = {
    "head": (*_HEAD, "nose"),  # 1-6
    "torso": ("torso", "neck"),  # 7, 8
    "front legs": ("lfleg", "lfpa", "rfleg", "rfpa"),  # 9-12
    "back legs": ("lbleg", "lbpa", "rbleg", "rbpa"),  # 13-16
    "tail": ("tail",),  # 17
}
_COW = {
    "head": (*_HEAD, "muzzle", "lhorn", "rhorn"),  # 1-8
    "torso": ("torso", "neck"),  # 9, 10
    "front legs": ("lfuleg", "lflleg", "rfuleg", "rflleg"),  # 11-14
    "back legs": ("lbuleg", "lblleg", "rbuleg", "rblleg"),  # 15-18
}
PART_GROUPS: Groups = {
    "bird": {
        "head": ("head", "leye", "reye", "beak"),  # 1-4
        "torso": ("torso", "neck", "lwing", "rwing"),  # 5-8
        "legs": ("lleg", "lfoot", "rleg", "rfoot"),  # 9-12
        "tail": ("tail",),  # 13
    },
    "cat": _CAT,
    "cow": _COW,
    "dog": {**_CAT, "head": (*_CAT["head"], "muzzle")},  # and 20
    "horse": {
        "head": (*_HEAD, "muzzle"),  # 1-6
        "torso": ("torso", "neck"),  # 9, 10
        "front legs": (*_COW["front legs"], "lfho", "rfho"),  # 11-14, 30, 31
        "back legs": (*_COW["back legs"], "lbho", "rbho"),  # 15-18, 32, 33
    },
    "sheep": _COW,
}
"""For each class its parts, each with VOC-Part's own names of what it is merged from."""

LANDMARKS: Groups = {name: {"head": ("head",), "neck": ("neck",), "torso": ("torso",)} for name in PART_GROUPS}
"""What the paper measures location instability on."""

_DEVKITS = ("", "VOC2010", "VOCdevkit/VOC2010")


def is_voc_part(root: Path) -> bool:
    """Tell whether a folder looks like VOC-Part."""
    return (root / "Annotations_Part").is_dir()


def read_voc_part(root: Path, options: ReadOptions | None = None, groups: Groups = PART_GROUPS) -> Pictures:
    """Read the objects of some classes; a box is the extent of the object's mask, a part's centre that of its box.

    The split is VOC's own, if `ImageSets/Main/train.txt` and `val.txt` are there: train, and val as test.

    Args:
        root: the folder with `Annotations_Part/`, and VOC 2010's `JPEGImages/` in it, in `VOC2010/` or in
            `VOCdevkit/VOC2010/`.
        options: crops and the like.
        groups: the classes to read, and how to merge their parts.

    Raises:
        DataError: a folder is missing, a file is damaged, photographs cannot be read, or a class has no picture.
    """
    voc = next((root / name for name in _DEVKITS if (root / name / "JPEGImages").is_dir()), None)
    annotations = sorted((root / "Annotations_Part").glob("*.mat"))
    if voc is None or not annotations:
        lacking = "JPEGImages" if voc is None else "Annotations_Part/*.mat"
        raise DataError(f"{root} lacks {lacking}; expected VOC-Part's annotations beside VOC 2010's JPEGImages")
    classes = tuple(groups)
    part_names = tuple(dict.fromkeys(part for merged in groups.values() for part in merged))
    official = _official_split(voc)
    objects = [
        MarkedObject(
            file=voc / "JPEGImages" / f"{path.stem}.jpg",
            label=classes.index(found.name),
            box=found.box,
            xy=centres(part_box),
            part_box=part_box,
            split=official.get(path.stem),
        )
        for path in track(annotations, "Reading VOC-Part's masks", len(annotations))
        for found in _objects(path, classes)
        for part_box in [_merged(found, groups[found.name], part_names)]
    ]
    listing = Listing("VOC-Part", root, classes, part_names, objects)
    return to_pictures(listing, options or ReadOptions())


class _Found(NamedTuple):
    name: str
    box: Box
    parts: list[tuple[str, Box]]


def _objects(path: Path, classes: Collection[str]) -> list[_Found]:
    """Return the objects of some classes; what has an empty mask is not there."""
    found = []
    try:
        for each in listed(read_matlab(path, "anno")["objects"]):
            box = _extent(each["mask"])
            if each["class"] in classes and box is not None:
                extents = [(str(part["part_name"]), _extent(part["mask"])) for part in listed(each["parts"])]
                parts = [(name, extent) for name, extent in extents if extent is not None]
                found.append(_Found(str(each["class"]), box, parts))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        raise DataError(f"{path} is no VOC-Part annotation; expected anno.objects with class, mask and parts") from None
    return found


def _merged(found: _Found, merged: Mapping[str, tuple[str, ...]], part_names: tuple[str, ...]) -> Float32Array:
    """Return (parts, 4) boxes round all that belongs to a part; NaN where nothing does."""
    part_box = np.full((len(part_names), 4), np.nan, np.float32)
    for row, part in enumerate(part_names):
        extents = [extent for name, extent in found.parts if name in merged.get(part, ())]
        if extents:
            part_box[row] = *np.min(extents, 0)[:2], *np.max(extents, 0)[2:]
    return part_box


def _extent(mask: npt.NDArray[Any]) -> Box | None:
    """Return the edges x0, y0, x1, y1 of a mask (height, width) in pixels, or None for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _official_split(voc: Path) -> dict[str, int]:
    lists = voc / "ImageSets" / "Main"
    return {
        stem: split
        for name, split in (("train.txt", TRAIN), ("val.txt", TEST))
        if (lists / name).is_file()
        for stem in (lists / name).read_text(encoding="utf-8", errors="replace").split()
    }
