"""Splits by photograph: no twin on the other side, and the same answer whatever else is read along."""

from __future__ import annotations

import numpy as np

from analyzers.read_splits import TEST, TRAIN, groups, split_by_group

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
