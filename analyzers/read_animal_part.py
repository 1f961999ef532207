"""ILSVRC 2013 DET Animal-Part, as `zqs1022/detanimalpart` is cloned: 30 animals with heads and forelimbs marked.

`<wnid>_obj/img/img/<number>.jpg` is the whole photograph of an object, stored once for each of its objects, and
`<wnid>_obj/img/data.mat` holds their boxes. The marks come with the code of arXiv 1710.00935, in
`zqs1022/interpretableCNN`, as `<wnid>/truth_part01.mat` (heads) and `truth_part02.mat` (forelimbs), in 224ths of the
object's box.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from analyzers.errors import DataError
from analyzers.pictures import Float32Array, Pictures
from analyzers.read_matlab import listed, read_matlab
from analyzers.read_objects import Box, Listing, MarkedObject, ReadOptions, centres, to_pictures

PART_NAMES = ("head", "forelimbs")
NAMES = {
    "n01443537": "goldfish", "n01503061": "bird", "n01639765": "frog", "n01662784": "turtle", "n01674464": "lizard",
    "n01882714": "koala", "n01982650": "lobster", "n02084071": "dog", "n02118333": "fox", "n02121808": "domestic cat",
    "n02129165": "lion", "n02129604": "tiger", "n02131653": "bear", "n02324045": "rabbit", "n02342885": "hamster",
    "n02355227": "squirrel", "n02374451": "horse", "n02391049": "zebra", "n02395003": "swine",
    "n02398521": "hippopotamus", "n02402425": "cattle", "n02411705": "sheep", "n02419796": "antelope",
    "n02437136": "camel", "n02444819": "otter", "n02454379": "armadillo", "n02484322": "monkey",
    "n02503517": "elephant", "n02509815": "red panda", "n02510455": "giant panda",
}  # fmt: skip

_IN_CODE = "code/data_input/data_input_DET-2015-subset-ILSVRC2013train"
_SIDE = 224  # of the square that the marks were made for


def is_animal_part(root: Path) -> bool:
    """Tell whether a folder looks like the Animal-Part set."""
    return any(root.glob("n*_obj/img/data.mat"))


def read_animal_part(root: Path, options: ReadOptions | None = None, marks: Path | None = None) -> Pictures:
    """Read all classes that are there, split by photograph; a part that is marked more than once counts as not marked.

    Args:
        root: the clone of `zqs1022/detanimalpart`.
        options: crops and the like.
        marks: the folder with `<wnid>/truth_part01.mat`; without it they are looked for in `root` and, as the papers'
            code puts `root` below its own `data/`, in that code. Without any, there are no marks.

    Raises:
        DataError: a file is missing or damaged, photographs cannot be read, or a class has no picture.
    """
    folders = sorted(path for path in root.glob("n*_obj") if path.is_dir())
    if not folders:
        raise DataError(f"{root} lacks n<number>_obj folders; expected a clone of zqs1022/detanimalpart")
    wnids = [folder.name.removesuffix("_obj") for folder in folders]
    places = (root, root.resolve().parent.parent / _IN_CODE) if marks is None else (marks,)
    marked = next((place for place in places if any(_truth(place, wnid, 0).is_file() for wnid in wnids)), None)
    if marked is None and marks is not None:
        raise DataError(f"{marks} lacks marks; expected <wnid>/truth_part01.mat in it")
    objects = [
        each
        for label, (folder, wnid) in enumerate(zip(folders, wnids, strict=True))
        for each in _objects(folder, label, _parts(marked, wnid))
    ]
    names = tuple(NAMES.get(wnid, wnid) for wnid in wnids)
    listing = Listing("Animal-Part", root, names, PART_NAMES if marked else (), objects)
    return to_pictures(listing, options or ReadOptions())


def _objects(folder: Path, label: int, parts: list[list[Float32Array | None]]) -> list[MarkedObject]:
    data = folder / "img" / "data.mat"
    samples = listed(read_matlab(data, "samples"))
    objects = []
    for file in sorted((folder / "img" / "img").glob("*.jpg")):
        number = int(file.stem) - 1 if file.stem.isdecimal() else -1
        if not 0 <= number < len(samples):
            raise DataError(
                f"{data} has {len(samples)} objects but none for {file.name}; files are <number>.jpg from 1"
            )
        box = _box(samples[number], data)
        share = np.full((len(parts), 4), np.nan, np.float32)
        for row, marks in enumerate(parts):
            found = marks[number] if number < len(marks) else None
            if found is not None:
                share[row] = found
        part_box = np.tile(box[:2], 2) + share * np.tile(np.subtract(box[2:], box[:2]), 2)
        part_box = part_box.astype(np.float32)
        objects.append(MarkedObject(file, label, box, centres(part_box), part_box))
    return objects


def _box(sample: Any, data: Path) -> Box:
    """Return the edges of a box, which MATLAB's reader takes for the first and last pixels, counted from 1."""
    try:
        box = sample["obj"]["bndbox"]
        x0, y0, x1, y1 = (float(box[name]) for name in ("xmin", "ymin", "xmax", "ymax"))
    except (KeyError, TypeError, IndexError, ValueError):
        raise DataError(
            f"{data} is no index of Animal-Part; expected samples(i).obj.bndbox with xmin to ymax"
        ) from None
    return x0 - 1, y0 - 1, x1, y1


def _truth(place: Path, wnid: str, part: int) -> Path:
    return place / wnid / f"truth_part{part + 1:02d}.mat"


def _parts(place: Path | None, wnid: str) -> list[list[Float32Array | None]]:
    """Return for each part and object the mark's edges in shares of the object's box, if it has exactly one mark."""
    if place is None:
        return []
    files = [_truth(place, wnid, part) for part in range(len(PART_NAMES))]
    return [
        [_mark(each, file) for each in listed(read_matlab(file, "truth"))] if file.is_file() else [] for file in files
    ]


def _mark(truth: Any, file: Path) -> Float32Array | None:
    try:
        centre = np.asarray(truth["pHW_center"], np.float32).ravel() / _SIDE
        scale = np.asarray(truth["pHW_scale"], np.float32).ravel() / _SIDE
        if len(centre) != 2:
            return None
        (y, x), (height, width) = centre, scale
        return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2], np.float32)
    except (KeyError, TypeError, IndexError, ValueError):
        raise DataError(f"{file} holds no marks; expected truth(i).pHW_center and pHW_scale") from None
