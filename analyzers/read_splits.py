"""Which photographs belong together, and on which side of a split they go: no photograph is on both.

What other people split is looked through once more before anything is learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from analyzers.errors import DataError
from analyzers.pictures import SPLITS, Int64Array, Pictures
from analyzers.pixels import UInt8Array

TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")


def groups(digests: Sequence[bytes]) -> Int64Array:
    """Number the photographs by content: two files with the same bytes are one photograph.

    Args:
        digests: a hash of the photograph's file, for each picture.
    """
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(digest, len(numbers)) for digest in digests], np.int64)


def split_by_group(
    group: Int64Array, photographs: Sequence[str], official: Sequence[int | None], test_share: float, seed: int
) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
    """Return each picture's split, and which pictures stay.

    The data set's own split is used where it has one. A photograph that it has on both sides stays in test, so that
    figures remain comparable, and its copies in train are left out. All other photographs are shared out by a hash of
    their name, so that the split does not depend on the order or on what else is there.

    Args:
        group: (pictures,) equal for pictures of one photograph.
        photographs: the name of each picture's photograph; a group goes by the first of its names.
        official: each picture's split in the data set, or None.
        test_share: about how much of the photographs without an official split to test on, 0..1.
        seed: another one gives another split.
    """
    name: dict[int, str] = {}
    sides: dict[int, set[int]] = {}
    for number, photograph, side in zip(group.tolist(), photographs, official, strict=True):
        name[number] = min(photograph, name.get(number, photograph))
        sides.setdefault(number, set()).update(() if side is None else (side,))
    side_of = {
        number: TEST if TEST in known or (not known and _lot(name[number], seed) < test_share) else TRAIN
        for number, known in sides.items()
    }
    split = np.array([side_of[number] for number in group.tolist()], np.int64)
    stays = np.array([side in (None, now) for side, now in zip(official, split.tolist(), strict=True)], np.bool_)
    return split, stays


def refuse_shared(train: Pictures, test: Pictures, train_pixels: UInt8Array, test_pixels: UInt8Array) -> None:
    """Raise if a picture to be tested on was learned from: its photograph, the same pixels, or their mirror image.

    Mirror images are found where pictures are lossless; what was compressed once more has other pixels.

    Args:
        train: what is learned from.
        test: what is tested on.
        train_pixels: (pictures, 3, height, width), decoded at one size.
        test_pixels: alike.

    Raises:
        DataError: naming the first few.
    """
    known: dict[bytes, tuple[int, str]] = {}
    for row, pixels in enumerate(train_pixels):
        known.setdefault(_digest(pixels[..., ::-1]), (row, "the mirror image of"))
    for row, pixels in enumerate(train_pixels):
        known[_digest(pixels)] = (row, "the same as")
    photographs = {int(group): (row, "of the same photograph as") for row, group in enumerate(train.group)}
    shared = [
        f"{_named(test, row)} of test is {how} {_named(train, other)} of train"
        for row, (pixels, group) in enumerate(zip(test_pixels, test.group.tolist(), strict=True))
        for other, how in (known.get(_digest(pixels)) or photographs.get(group, (-1, "")),)
        if other >= 0
    ]
    if shared:
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        raise DataError(
            f"{len(shared)} of {len(test)} test pictures are learned from, so accuracy would say too much:"
            f" {'; '.join(shared[:3])}{more}; take them out of one of the splits"
        )


def _digest(pixels: UInt8Array) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def _named(pictures: Pictures, row: int) -> str:
    return f"picture {row} ({pictures.names[pictures.label[row]]})"


def _lot(name: str, seed: int) -> float:
    """Draw a number in 0..1 that depends on the name and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) / 2**64
