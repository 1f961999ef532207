"""Labelled pictures on disk: `.npz` packs and folders with one sub-folder a class.

A pack holds `image` (bytes of the encoded pictures, one after the other), `offsets`, `label`, `names`
and `split` (0 train, 1 test), and optionally `picture_id` and part marks; `docs/data.md` describes it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.errors import DataError
from analyzers.files import write_atomically
from analyzers.pixels import UInt8Array, decode

SPLITS = ("train", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PartMarks:
    """Where marked parts are, in shares (0..1) of the picture's width and height.

    Attributes:
        names: the P parts that are marked.
        xy: (pictures, P, 2) float32 centres (x, y); NaN where a part is not marked.
        box: (pictures, P, 4) float32 boxes x0, y0, x1, y1; NaN alike.
    """

    names: tuple[str, ...]
    xy: Float32Array
    box: Float32Array


@dataclass(frozen=True, slots=True)
class Pictures:
    """Encoded pictures with labels.

    Attributes:
        names: class names by label.
        encoded: one JPEG, PNG or WebP file for each picture.
        label: (pictures,) int64 into `names`.
        split: (pictures,) int64 into `SPLITS`.
        group: (pictures,) int64, equal for pictures that must not be on both sides of a split.
        parts: part marks, if there are any.
    """

    names: tuple[str, ...]
    encoded: tuple[bytes, ...]
    label: Int64Array
    split: Int64Array
    group: Int64Array
    parts: PartMarks | None = None

    def __len__(self) -> int:
        return len(self.encoded)

    def take(self, rows: Int64Array) -> Pictures:
        """Return the pictures at `rows`, in that order."""
        parts = self.parts
        return replace(
            self,
            encoded=tuple(self.encoded[row] for row in rows),
            label=self.label[rows],
            split=self.split[rows],
            group=self.group[rows],
            parts=None if parts is None else PartMarks(parts.names, parts.xy[rows], parts.box[rows]),
        )

    def of_split(self, split: str) -> Pictures:
        """Return the pictures of one split, or of "all".

        Raises:
            DataError: there is no such split, or no picture in it.
        """
        if split != "all" and split not in SPLITS:
            raise DataError(f"unknown split '{split}'; there are {', '.join(SPLITS)} and all")
        if not len(self):
            raise DataError("the data holds no picture")
        if split == "all":
            return self
        rows = np.flatnonzero(self.split == SPLITS.index(split))
        if not len(rows):
            raise DataError(f"the data has no picture in its {split} split; 'all' takes every picture")
        return self.take(rows)

    def relabelled(self, names: tuple[str, ...]) -> Pictures:
        """Return the same pictures with labels into `names`, matched by name.

        Raises:
            DataError: the classes are not the same.
        """
        if self.names == names:
            return self
        if set(self.names) != set(names) or len(self.names) != len(names):
            strange = sorted(set(self.names) ^ set(names))[:5]
            raise DataError(f"the data's classes are not the model's; only one of them has {', '.join(strange)}")
        if len(set(names)) != len(names):
            raise DataError("two classes have the same name, and data and model order them differently; rename one")
        order = np.array([names.index(name) for name in self.names], np.int64)
        return replace(self, names=names, label=order[self.label])

    def decoded(self, height: int, width: int) -> UInt8Array:
        """Decode all pictures to (pictures, height, width, 3) uint8."""
        pixels = np.empty((len(self), height, width, 3), np.uint8)
        for row, encoded in enumerate(self.encoded):
            pixels[row] = decode(encoded, height, width, field=f"picture {row}").pixels
        return pixels

    def batches(self, height: int, width: int, size: int) -> Iterator[UInt8Array]:
        """Decode `size` pictures at a time, so that memory stays bounded; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self)))).decoded(height, width)

    def fingerprint(self) -> str:
        """Return the SHA-256 over the pictures, labels and class names, hexadecimal."""
        digest = hashlib.sha256("\0".join(self.names).encode())
        digest.update(self.label.astype("<i8").tobytes())
        for encoded in self.encoded:
            digest.update(hashlib.sha256(encoded).digest())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write a pack; the file appears whole or not at all."""
        arrays: dict[str, Any] = {
            "image": np.frombuffer(b"".join(self.encoded), np.uint8),
            "offsets": np.cumsum([0, *map(len, self.encoded)], dtype=np.int64),
            "label": self.label.astype(np.uint8 if len(self.names) <= 256 else np.int64),
            "split": self.split.astype(np.uint8),
            "names": np.array(self.names),
            "picture_id": self.group,
        }
        if self.parts is not None:
            arrays |= {
                "part_names": np.array(self.parts.names),
                "part_xy": self.parts.xy,
                "part_box": self.parts.box,
            }
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_atomically(path, buffer.getvalue())


def read_pictures(path: Path) -> Pictures:
    """Read a `.npz` pack, a folder `[train/|test/]<class>/<picture>`, or a data set that `read_layout` knows.

    Raises:
        DataError: there is nothing there, or it is none of these.
    """
    if path.is_dir():
        from analyzers.read_layout import read_layout  # here, because the readers make `Pictures`

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
    "names": ("U", 1, False),
    "split": ("iub", 1, True),
    "picture_id": ("iu", 1, True),
    "part_names": ("U", 1, False),
    "part_xy": ("f", 3, True),
    "part_box": ("f", 3, True),
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
    )


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
        encoded=tuple(file.read_bytes() for file, _, _ in files),
        label=np.array([label for _, label, _ in files], np.int64),
        split=np.array([split for _, _, split in files], np.int64),
        group=np.arange(len(files), dtype=np.int64),
    )


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".")  # .git, .ipynb_checkpoints
