"""The check before training: what cannot be read and what is missing, in one sentence each."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers.check_pictures import check_pictures, refuse_empty_classes
from analyzers.errors import DataError
from analyzers.pictures import Pictures
from tests.conftest import png

GOOD = png(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3))
DAMAGED = GOOD[:-40]


def pictures_of(*encoded: bytes) -> Pictures:
    """Return a cat, then dogs."""
    count = len(encoded)
    label = np.minimum(np.arange(count), 1)
    return Pictures(("cat", "dog"), encoded, label, np.zeros(count, np.int64), np.arange(count))


def test_pictures_that_can_be_read_come_back_as_they_are() -> None:
    pictures = pictures_of(GOOD, GOOD)
    assert check_pictures(pictures) is pictures


def test_damaged_pictures_are_counted_and_the_first_few_named() -> None:
    with pytest.raises(DataError, match=r"^7 of 9 pictures cannot be read: picture 2 \(dog\): .* and 2 more; mend"):
        check_pictures(pictures_of(GOOD, GOOD, b"no picture", *[DAMAGED] * 6))


def test_damaged_pictures_are_left_out_if_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    kept = check_pictures(pictures_of(GOOD, DAMAGED, GOOD), "skip")
    assert (kept.encoded, kept.label.tolist(), kept.group.tolist()) == ((GOOD, GOOD), [0, 1], [0, 2])
    assert "1 of 3 pictures cannot be read and are left out: picture 1 (dog)" in caplog.text
    with pytest.raises(DataError, match=r"^none of 2 pictures can be read: picture 0"):
        check_pictures(pictures_of(DAMAGED, DAMAGED), "skip")


def test_a_class_without_pictures_is_named() -> None:
    with pytest.raises(DataError, match="1 of 3 classes have no picture: owl; add"):
        refuse_empty_classes(("cat", "dog", "owl"), np.array([1, 0, 1]))
    refuse_empty_classes(("cat", "dog"), np.array([1, 0, 1]))


def test_only_two_choices_are_known() -> None:
    with pytest.raises(DataError, match="expected refuse or skip"):
        check_pictures(pictures_of(GOOD, GOOD), "ignore")  # type: ignore[arg-type]
