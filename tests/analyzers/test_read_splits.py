"""Splits by photograph: no twin on the other side, and the same answer whatever else is read along."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analyzers.errors import DataError
from analyzers.pictures import Pictures
from analyzers.read_splits import TEST, TRAIN, groups, refuse_shared, split_by_group
from tests.conftest import SIZE, png, random_pictures

NAMES = [f"photo {number}" for number in range(1000)]
FREE = [None] * len(NAMES)


def test_files_with_the_same_bytes_are_one_group() -> None:
    assert groups([b"a", b"b", b"a", b"c", b"b"]).tolist() == [0, 1, 0, 2, 1]


def test_about_the_share_that_is_asked_for_is_tested_on() -> None:
    split, stays = split_by_group(np.arange(1000), NAMES, FREE, 0.3, seed=0)
    assert 0.25 < split.mean() < 0.35
    assert stays.all()
    assert not split_by_group(np.arange(1000), NAMES, FREE, 0, seed=0)[0].any()
    assert split_by_group(np.arange(1000), NAMES, FREE, 1, seed=0)[0].all()


def test_a_photographs_side_depends_on_its_name_and_the_seed_alone() -> None:
    split, _ = split_by_group(np.arange(1000), NAMES, FREE, 0.3, seed=0)
    backwards, _ = split_by_group(np.arange(500), NAMES[:499:-1], FREE[:500], 0.3, seed=0)
    np.testing.assert_array_equal(backwards[::-1], split[500:])
    assert (split_by_group(np.arange(1000), NAMES, FREE, 0.3, seed=1)[0] != split).any()
    assert split[:12].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]  # by sha256sum of "0/photo 0" and so on


def test_twins_share_a_side() -> None:
    split, _ = split_by_group(np.arange(1000) // 2, NAMES, FREE, 0.5, seed=0)
    np.testing.assert_array_equal(split[::2], split[1::2])


def test_the_official_side_wins_and_twins_of_test_photographs_leave_train() -> None:
    group = np.array([0, 1, 2, 2, 3, 3])
    split, stays = split_by_group(group, NAMES[:6], [TRAIN, TEST, TEST, TRAIN, TRAIN, None], 1, seed=0)
    assert split.tolist() == [TRAIN, TEST, TEST, TEST, TRAIN, TRAIN]
    assert stays.tolist() == [True, True, True, False, True, True]


# What other people split.


def check(pictures: Pictures, size: int = SIZE) -> None:
    train, test = pictures.of_split("train"), pictures.of_split("test")
    refuse_shared(train, test, *(side.decoded(size, size).transpose(0, 3, 1, 2) for side in (train, test)))


def with_copy(flipped: bool, side: int = 37) -> Pictures:
    """Return pictures whose third test picture is the sixth training picture, as a file of its own."""
    pictures = random_pictures(size=side)
    pixels = pictures.decoded(side, side)[5]
    copy = png(np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels)
    row = int(np.flatnonzero(pictures.split == TEST)[2])
    return replace(pictures, encoded=(*pictures.encoded[:row], copy, *pictures.encoded[row + 1 :]))


def test_pictures_that_share_nothing_pass() -> None:
    check(random_pictures())


@pytest.mark.parametrize("size", [37, 24, 64])
@pytest.mark.parametrize(("flipped", "how"), [(False, "the same as"), (True, "the mirror image of")])
def test_a_test_picture_that_is_learned_from_is_refused_by_name(flipped: bool, how: str, size: int) -> None:
    with pytest.raises(DataError) as caught:
        check(with_copy(flipped), size)
    assert f"1 of 10 test pictures are learned from, so accuracy would say too much: picture 2 (dog) of test is {how}" \
        f" picture 5 (owl) of train; take them out of one of the splits" == str(caught.value)  # fmt: skip


def test_copies_within_a_split_are_nobody_s_business() -> None:
    pictures = random_pictures()
    check(replace(pictures, encoded=(pictures.encoded[0],) * 20 + pictures.encoded[20:]))


def test_two_crops_of_a_photograph_on_both_sides_are_refused() -> None:
    group = np.arange(30)
    group[[22, 25]] = 7
    with pytest.raises(DataError, match=r"2 of 10 .* picture 2 \(dog\) of test is of the same photograph as picture 7"):
        check(replace(random_pictures(), group=group))


def test_of_many_the_first_few_are_named() -> None:
    pictures = random_pictures()
    with pytest.raises(DataError, match=r"10 of 10 .* of train and 7 more; take"):
        check(replace(pictures, encoded=pictures.encoded[:20] + pictures.encoded[:10]))
