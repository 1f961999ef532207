"""Whether every picture can be read and every class has one: the look at the data before hours of work."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np

from analyzers.errors import DataError, InvalidInputError
from analyzers.pictures import Int64Array, Pictures
from analyzers.pixels import decode
from analyzers.progress import track

log = logging.getLogger("pellucid.analyzers")

Unreadable = Literal["refuse", "skip"]

_NAMED = 5  # how many of many are named in a sentence


def check_pictures(pictures: Pictures, unreadable: Unreadable = "refuse") -> Pictures:
    """Decode every picture in full and return those that can be read.

    Args:
        pictures: from a pack, a folder or a data set's reader.
        unreadable: "refuse" raises where a picture cannot be read; "skip" leaves it out.

    Raises:
        DataError: pictures cannot be read and are not to be skipped, or none can be.
    """
    readable, failures = [], []
    for row, encoded in enumerate(track(pictures.encoded, "Checking pictures", len(pictures))):
        try:
            decode(encoded, 1, 1, field=pictures.describe(row))
        except InvalidInputError as error:
            failures.append(str(error))
        else:
            readable.append(row)
    refuse_unreadable(failures, len(pictures), unreadable)
    if failures and not readable:
        raise DataError(f"none of {len(pictures)} pictures can be read: {_some(failures, '; ')}; expected JPEG or PNG")
    return pictures.take(np.array(readable, np.int64)) if failures else pictures


def refuse_unreadable(failures: Sequence[str], total: int, unreadable: Unreadable) -> None:
    """Raise one error for all pictures that cannot be read, unless they are to be skipped.

    Args:
        failures: for each such picture its name, with what is wrong with it.
        total: how many pictures there are, readable or not.
        unreadable: "refuse" or "skip".

    Raises:
        DataError: there are failures and they are not to be skipped, or there is no such choice.
    """
    if unreadable not in ("refuse", "skip"):
        raise DataError(f"unreadable is '{unreadable}'; expected refuse or skip")
    if failures and unreadable == "refuse":
        raise DataError(
            f"{len(failures)} of {total} pictures cannot be read: {_some(failures, '; ')};"
            " mend or remove them, or leave them out (unreadable: skip)"
        )
    if failures:
        some = _some(failures, "; ")
        log.warning("%d of %d pictures cannot be read and are left out: %s", len(failures), total, some)


def refuse_empty_classes(names: Sequence[str], label: Int64Array) -> None:
    """Raise if a class has no picture.

    Raises:
        DataError: naming such classes.
    """
    counts = np.bincount(label, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(names)} classes have no picture: {_some(empty, ', ')};"
            " add pictures of them or take them off the list of classes"
        )


def _some(items: Sequence[str], separator: str) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return separator.join(items[:_NAMED]) + more
