"""Read labelled pictures from disk: `.npz` packs, folders with one sub-folder a class, data sets as downloaded."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.errors import DataError
from analyzers.pictures import SPLITS, SUFFIXES, Files, PartMarks, Pictures
from analyzers.read_layout import read_layout


def read_pictures(path: Path) -> Pictures:
    """Read a `.npz` pack, a folder `[train/|test/]<class>/<picture>`, or a data set that `read_layout` knows.

    Raises:
        DataError: there is nothing there, or it is none of these.
    """
    if path.is_dir():
        known = read_layout(path)
        return _read_folder(path) if known is None else known
    if path.is_file():
        return _read_pack(path)
    raise DataError(f"there is no data at {path}; expected a .npz pack or a folder with one sub-folder a class")


# The arrays of a pack: kinds of their dtype, number of axes, and whether there is one entry a picture.
_ARRAYS = {
    "image": ("u", 1, False),
    "offsets": ("iu", 1, False),
    "label": ("iu", 1, True),
    "labels": ("iub", 2, True),
    "names": ("U", 1, False),
    "split": ("iub", 1, True),
    "picture_id": ("iu", 1, True),
    "part_names": ("U", 1, False),
    "part_xy": ("f", 3, True),
    "part_box": ("f", 3, True),
    "without_image": ("u", 1, False),
    "without_offsets": ("iu", 1, False),
}


def _read_pack(path: Path) -> Pictures:
    arrays = _read_arrays(path)
    offsets, label, image = arrays["offsets"], arrays["label"].astype(np.int64), arrays["image"]
    names = tuple(str(name) for name in arrays["names"])
    if len(offsets) != len(label) + 1 or (np.diff(offsets) < 0).any() or offsets[-1] > len(image) or offsets[0] < 0:
        raise DataError(f"{path}: offsets do not fit {len(label)} labels and {len(image)} bytes of pictures")
    if len(label) and not 0 <= label.min() <= label.max() < len(names):
        strange = label.min() if label.min() < 0 else label.max()
        raise DataError(f"{path}: labels reach {strange} but there are {len(names)} names")
    labels = arrays.get("labels")
    if labels is not None and (labels.shape[1] != len(names) or not np.isin(labels, (0, 1)).all()):
        raise DataError(f"{path}: labels is {list(labels.shape)}; expected 0 or 1 for each of the {len(names)} names")
    parts = None
    if "part_names" in arrays and "part_xy" in arrays and "part_box" in arrays:
        parts = PartMarks(tuple(map(str, arrays["part_names"])), arrays["part_xy"], arrays["part_box"])
        if (parts.xy.shape[1:], parts.box.shape[1:]) != ((len(parts.names), 2), (len(parts.names), 4)):
            raise DataError(f"{path}: part_xy and part_box do not fit {len(parts.names)} part_names")
    raw = image.tobytes()
    return Pictures(
        names=names,
        encoded=tuple(raw[start:stop] for start, stop in pairwise(offsets)),
        label=label,
        split=arrays.get("split", np.zeros(len(label))).astype(np.int64),
        group=arrays.get("picture_id", np.arange(len(label))).astype(np.int64),
        parts=parts,
        labels=None if labels is None else labels.astype(np.bool_),
        without=_without(path, arrays),
    )


def _without(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> tuple[tuple[bytes, ...], ...] | None:
    """Return each picture's copies without one part each, if the pack has them."""
    if "without_image" not in arrays or "without_offsets" not in arrays:
        return None
    offsets, pictures = arrays["without_offsets"].astype(np.int64), len(arrays["label"])
    each, left = divmod(len(offsets) - 1, max(pictures, 1))
    raw = arrays["without_image"].tobytes()
    if left or each < 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] > len(raw):
        raise DataError(f"{path}: without_offsets do not fit {pictures} pictures; expected one copy a part of each")
    copies = [raw[start:stop] for start, stop in pairwise(offsets)]
    return tuple(tuple(copies[row * each : (row + 1) * each]) for row in range(pictures))


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of a pack that we know; each has the dtype and shape of `_ARRAYS`."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as pack:
            arrays = {name: pack[name] for name in pack.files if name in _ARRAYS}
    except Exception:  # zipfile, zlib and numpy's header parser raise unrelated classes
        raise DataError(f"{path} is not a .npz pack, or a damaged one") from None
    missing = [name for name in ("image", "offsets", "label", "names") if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; a pack has image, offsets, label, names and split")
    for name, array in arrays.items():
        kinds, axes, one_a_picture = _ARRAYS[name]
        short = one_a_picture and array.ndim > 0 and len(array) != len(np.atleast_1d(arrays["label"]))
        wide = name == "image" and array.itemsize != 1
        if array.dtype.kind not in kinds or array.ndim != axes or short or wide:
            raise DataError(f"{path}: {name} is {array.dtype} {list(array.shape)}; docs/data.md says what it should be")
    return arrays


def _read_folder(path: Path) -> Pictures:
    roots = [(path / name, number) for number, name in enumerate(SPLITS) if (path / name).is_dir()]
    roots = roots or [(path, SPLITS.index("train"))]
    names = sorted({child.name for root, _ in roots for child in root.iterdir() if _is_class(child)})
    files = [
        (file, names.index(folder.name), split)
        for root, split in roots
        for folder in sorted(root.iterdir())
        if _is_class(folder)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(
            f"{path} holds no pictures; expected one sub-folder a class with {', '.join(SUFFIXES)} files in it,"
            " or such a tree below train/ and test/"
        )
    return Pictures(
        names=tuple(names),
        encoded=Files([file for file, _, _ in files]),
        label=np.array([label for _, label, _ in files], np.int64),
        split=np.array([split for _, _, split in files], np.int64),
        group=np.arange(len(files), dtype=np.int64),
    )


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".")  # .git, .ipynb_checkpoints
