"""Which photographs belong together, and on which side of a split they go: no photograph is on both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from analyzers.pictures import SPLITS, Int64Array

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


def _lot(name: str, seed: int) -> float:
    """Draw a number in 0..1 that depends on the name and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) / 2**64
