"""Crops moved off centre: pixels and marks move alike, and the middle stops being a good answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analyzers import metrics
from analyzers.off_centre import move_marks, move_pixels, off_centre, random_steps
from analyzers.pictures import PartMarks
from analyzers.read_pictures import read_pictures


def marks_at(xy: np.ndarray, half: float = 0.1) -> PartMarks:
    """Return marks of one part at xy (pictures, 2) with boxes round it."""
    xy = xy[:, None].astype(np.float32)
    return PartMarks(("head",), xy, np.concatenate((xy - half, xy + half), -1).astype(np.float32))


def test_a_bright_dot_and_its_mark_stay_together() -> None:
    random = np.random.default_rng(0)
    pixels = np.zeros((50, 24, 32, 3), np.uint8)
    row, column = random.integers(0, 24, 50), random.integers(0, 32, 50)
    pixels[np.arange(50), row, column] = 255
    marks = marks_at(np.stack(((column + 0.5) / 32, (row + 0.5) / 24), -1))
    moved, now = off_centre(pixels, marks, seed=3)
    seen = 0
    for picture, (x, y) in zip(moved, now.xy[:, 0], strict=True):
        bright = np.argwhere(picture[..., 0] == 255)
        assert len(bright) == (0 if np.isnan(x) else 1)
        if len(bright):
            seen += 1
            np.testing.assert_allclose(bright[0] + 0.5, (y * 24, x * 32), atol=1e-4)
    assert 20 < seen < 50  # some left the picture


def test_the_same_seed_moves_alike_in_any_batch() -> None:
    steps = random_steps(40, (20, 30), seed=1)
    np.testing.assert_array_equal(steps[:7], random_steps(7, (20, 30), seed=1))
    assert (steps != random_steps(40, (20, 30), seed=2)).any()


def test_steps_reach_a_quarter_of_each_side_evenly() -> None:
    steps = random_steps(20_000, (16, 40))
    assert (steps.min(0) == (-10, -4)).all()
    assert (steps.max(0) == (10, 4)).all()
    counts = np.bincount(steps[:, 1] + 4)
    assert counts.min() > 0.9 * 20_000 / 9


def test_what_comes_into_view_has_the_mean_colour_and_the_rest_is_the_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    moved = move_pixels(pixels, np.array([[2, -1]]))
    np.testing.assert_array_equal(moved[0, :7, 2:], pixels[0, 1:, :6])
    mean = np.rint(pixels[0].mean((0, 1)))
    assert (moved[0, 7] == mean).all()
    assert (moved[0, :, :2] == mean).all()
    np.testing.assert_array_equal(move_pixels(pixels, np.zeros((1, 2), np.int64)), pixels)


def test_parts_that_leave_become_nan_and_boxes_that_stick_out_are_clipped() -> None:
    marks = marks_at(np.array([[0.9, 0.5], [0.9, 0.5], [0.5, 0.5], [np.nan, np.nan]]))
    moved = move_marks(marks, np.array([[5, 0], [20, 0], [-10, 10], [0, 0]]), (100, 100))
    np.testing.assert_allclose(moved.xy[[0, 2], 0], [[0.95, 0.5], [0.4, 0.6]], atol=1e-6)
    np.testing.assert_allclose(moved.box[0, 0], [0.85, 0.4, 1.0, 0.6], atol=1e-6)
    np.testing.assert_allclose(moved.box[2, 0], [0.3, 0.5, 0.5, 0.7], atol=1e-6)
    assert np.isnan(moved.xy[[1, 3]]).all()
    assert np.isnan(moved.box[[1, 3]]).all()
    assert moved.xy.dtype == moved.box.dtype == np.float32


def test_off_centre_a_constant_peak_no_longer_wins_on_the_real_parts(shared_data: Path) -> None:
    """Measured: instability of the middle .069 as they are, .094 off centre; a head tracker stays at .04."""
    pictures = read_pictures(shared_data / "animal-parts-20.npz")
    moved = move_marks(pictures.parts, random_steps(len(pictures), (128, 128)), (128, 128))
    scores = []
    for marks in (pictures.parts, moved):
        per_class = []
        for number in range(len(pictures.names)):
            landmark = marks.xy[pictures.label == number]
            peak = np.full((len(landmark), 1, 2), 0.5)
            both = np.concatenate((peak, landmark[:, :1]), 1)
            per_class.append(metrics.mean_known(metrics.location_instability(both, landmark, np.sqrt(2)), 1))
        scores.append(np.mean(per_class, 0))
    (centre, head), (centre_moved, head_moved) = scores
    assert 0.065 < centre < 0.073
    assert centre_moved > 0.09
    assert max(head, head_moved) < 0.045
