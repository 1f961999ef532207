"""Labelled pictures and their part marks, and the `.npz` packs that hold them.

A pack holds `image` (bytes of the encoded pictures, one after the other), `offsets`, `label`, `names`
and `split` (0 train, 1 test), and optionally `picture_id`, `labels` and part marks; `docs/data.md` describes it.
"""

from __future__ import annotations

import difflib
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

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


class Files(Sequence[bytes]):
    """Picture files that are read when they are asked for, so that a folder of any size fits into memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, row: int) -> bytes: ...
    @overload
    def __getitem__(self, row: slice) -> Files: ...
    def __getitem__(self, row: int | slice) -> bytes | Files:
        if isinstance(row, slice):
            return Files(self.paths[row])
        return self.paths[row].read_bytes()


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
        labels: (pictures, classes) bool, every class that a picture has, where pictures may have several; `label` is
            then its main one.
        without: for each picture the same one without each of its parts, encoded, where that is known.
    """

    names: tuple[str, ...]
    encoded: Sequence[bytes]
    label: Int64Array
    split: Int64Array
    group: Int64Array
    parts: PartMarks | None = None
    labels: npt.NDArray[np.bool_] | None = None
    without: tuple[tuple[bytes, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.encoded)

    def take(self, rows: Int64Array) -> Pictures:
        """Return the pictures at `rows`, in that order."""
        parts = self.parts
        return replace(
            self,
            encoded=Files([self.encoded.paths[row] for row in rows])
            if isinstance(self.encoded, Files)
            else tuple(self.encoded[row] for row in rows),
            label=self.label[rows],
            split=self.split[rows],
            group=self.group[rows],
            parts=None if parts is None else PartMarks(parts.names, parts.xy[rows], parts.box[rows]),
            labels=None if self.labels is None else self.labels[rows],
            without=None if self.without is None else tuple(self.without[row] for row in rows),
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
        """Return the same pictures with labels into `names`, matched by name, or posed as one class against the rest.

        Raises:
            DataError: the classes are not the same.
        """
        if self.names == names:
            return self
        if len(names) == 2 and names[1] in self.names and names == _against_rest(names[1]):
            return self.one_against_rest(names[1])
        if set(self.names) != set(names) or len(self.names) != len(names):
            strange = sorted(set(self.names) ^ set(names))[:5]
            raise DataError(f"the data's classes are not the model's; only one of them has {', '.join(strange)}")
        if len(set(names)) != len(names):
            raise DataError("two classes have the same name, and data and model order them differently; rename one")
        order = np.array([names.index(name) for name in self.names], np.int64)
        labels = None if self.labels is None else self.labels[:, np.argsort(order)]
        return replace(self, names=names, label=order[self.label], labels=labels)

    def one_against_rest(self, category: str) -> Pictures:
        """Return the same pictures with label 1 where they have the category, and 0, "not <category>", where not.

        Raises:
            DataError: there is no such class.
        """
        if category not in self.names:
            nearest = ", ".join(difflib.get_close_matches(category, self.names, n=5, cutoff=0)) or "none"
            raise DataError(f"the data has no class '{category}'; the nearest names are {nearest}")
        number = self.names.index(category)
        has = self.label == number if self.labels is None else self.labels[:, number]
        return replace(self, names=_against_rest(category), label=has.astype(np.int64), labels=None)

    def decoded(self, height: int, width: int) -> UInt8Array:
        """Decode all pictures to (pictures, height, width, 3) uint8."""
        return self._decoded(range(len(self)), height, width)

    def _decoded(self, rows: Sequence[int], height: int, width: int) -> UInt8Array:
        pixels = np.empty((len(rows), height, width, 3), np.uint8)
        for place, row in enumerate(rows):
            pixels[place] = decode(self.encoded[row], height, width, field=self.describe(row)).pixels
        return pixels

    def describe(self, row: int) -> str:
        """Return what a picture is called in messages: its file, or its number here and its class."""
        if isinstance(self.encoded, Files):
            return str(self.encoded.paths[row])
        return f"picture {row} ({self.names[self.label[row]]})"

    def batches(self, height: int, width: int, size: int) -> Iterator[UInt8Array]:
        """Decode `size` pictures at a time, so that memory stays bounded; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self._decoded(range(start, min(start + size, len(self))), height, width)

    def fingerprint(self) -> str:
        """Return the SHA-256 over the pictures, labels and class names, hexadecimal."""
        digest = hashlib.sha256("\0".join(self.names).encode())
        digest.update(self.label.astype("<i8").tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
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
        if self.labels is not None:
            arrays["labels"] = self.labels
        if self.without is not None:
            every = [encoded for row in self.without for encoded in row]
            arrays["without_image"] = np.frombuffer(b"".join(every), np.uint8)
            arrays["without_offsets"] = np.cumsum([0, *map(len, every)], dtype=np.int64)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_atomically(path, buffer.getvalue())


def _against_rest(category: str) -> tuple[str, str]:
    return f"not {category}", category
