"""Where filters look and which class they serve: known values, literal equations, and the real annotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analyzers import metrics
from analyzers.read_pictures import read_pictures
from tests import oracles


def scene(seed: int = 0, pictures: int = 40, filters: int = 3, landmarks: int = 2) -> tuple[np.ndarray, ...]:
    """Return random peaks and landmarks in a square of 100, some of them missing, and strengths."""
    random = np.random.default_rng(seed)
    peak = random.random((pictures, filters, 2)) * 100
    landmark = random.random((pictures, landmarks, 2)) * 100
    peak[random.random((pictures, filters)) < 0.2] = np.nan
    landmark[random.random((pictures, landmarks)) < 0.2] = np.nan
    return peak, landmark, random.random((pictures, filters))


def constant(pictures: int, x: float, y: float) -> np.ndarray:
    return np.tile([float(x), float(y)], (pictures, 1, 1))


# Location instability


@pytest.mark.parametrize("top", [None, 10])
@pytest.mark.parametrize("sample_std", [False, True])
def test_location_instability_is_its_equation(top: int | None, sample_std: bool) -> None:
    peak, landmark, strength = scene()
    ranked = None if top is None else strength
    got = metrics.location_instability(peak, landmark, 141.0, strength=ranked, top=top or 100, sample_std=sample_std)
    expected = oracles.location_instability(peak, landmark, 141.0, ranked, top or 100, sample_std)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_landmarks_on_a_circle_round_a_constant_peak_have_no_instability() -> None:
    angle = np.random.default_rng(0).random(50) * 2 * np.pi
    landmark = 50 + 20 * np.stack((np.cos(angle), np.sin(angle)), -1)[:, None]
    got = metrics.location_instability(constant(50, 50, 50), landmark, 141.0)
    np.testing.assert_allclose(got, 0, atol=1e-12)


def test_a_peak_at_a_fixed_displacement_has_no_instability_and_tracks_perfectly() -> None:
    _, landmark, _ = scene(1, landmarks=1)
    peak = landmark + np.array([3, -4])
    np.testing.assert_allclose(metrics.location_instability(peak, landmark, 141.0), 0, atol=1e-12)
    np.testing.assert_allclose(metrics.tracking_ratio(peak, landmark), 0, atol=1e-12)


def test_uniform_peaks_round_a_central_landmark_have_the_known_instability() -> None:
    """The distance to the middle of a unit square has standard deviation 0.1424, by numeric integration."""
    axis = (np.arange(2000) + 0.5) / 2000 - 0.5
    distance = np.hypot(axis[:, None], axis)
    expected = distance.std() / np.sqrt(2)
    assert expected == pytest.approx(0.1007, abs=2e-4)
    n, filters = 2000, 20
    peak = np.random.default_rng(0).random((n, filters, 2))
    got = metrics.location_instability(peak, np.full((n, 1, 2), 0.5), np.sqrt(2))
    kurtosis = ((distance - distance.mean()) ** 4).mean() / distance.var() ** 2
    standard_error = expected * np.sqrt((kurtosis - 1) / (4 * n * filters))
    assert abs(got.mean() - expected) < 4 * standard_error


def test_no_measure_changes_when_picture_and_landmarks_are_scaled_together() -> None:
    peak, landmark, strength = scene(2)
    for scale in (1e-3, 7.0):
        for name, measure in {
            "instability": lambda s: metrics.location_instability(peak * s, landmark * s, 141 * s, strength=strength),
            "ratio": lambda s: metrics.tracking_ratio(peak * s, landmark * s),
            "hits": lambda s: metrics.hit_rate(peak * s, landmark * s, 20 * s),
            "boxes": lambda s: metrics.box_hits(peak * s, landmark * s, (100 * s, 100 * s)),
        }.items():
            np.testing.assert_allclose(measure(scale), measure(1.0), rtol=1e-9, err_msg=name)


def test_only_a_filter_s_strongest_pictures_with_the_landmark_count() -> None:
    strength = np.arange(6.0)[:, None]
    landmark = constant(6, 0, 0)
    landmark[5] = np.nan  # the strongest does not show it
    peak = np.array([[9, 0], [9, 0], [9, 0], [1, 0], [3, 0], [50, 0]], float)[:, None]
    got = metrics.location_instability(peak, landmark, 1.0, strength=strength, top=2)
    assert got[0, 0] == pytest.approx(1.0)


def test_a_filter_that_never_fires_and_a_landmark_nobody_marked_are_not_measured() -> None:
    peak, landmark, strength = scene(3)
    peak[:, 1], landmark[:, 0] = np.nan, np.nan
    for table in (
        metrics.location_instability(peak, landmark, 141.0, strength=strength),
        metrics.tracking_ratio(peak, landmark),
    ):
        assert np.isnan(table[1]).all()
        assert np.isnan(table[:, 0]).all()
        assert np.isfinite(table[[0, 2], 1]).all()
    assert np.isnan(metrics.location_instability(peak[:0], landmark[:0], 141.0)).all()


def test_fewer_pictures_than_the_minimum_say_nothing() -> None:
    peak, landmark, _ = scene(4, pictures=4, filters=1)
    peak[:], landmark[:] = np.arange(16).reshape(4, 2, 2)[:, :1], np.arange(16).reshape(4, 2, 2) ** 2
    assert np.isfinite(metrics.tracking_ratio(peak, landmark, minimum=4)).all()
    assert np.isnan(metrics.tracking_ratio(peak, landmark, minimum=5)).all()
    assert np.isnan(metrics.location_instability(peak, landmark, 1.0, minimum=5)).all()


# Tracking ratio


def test_the_tracking_ratio_is_its_equation() -> None:
    peak, landmark, _ = scene(5)
    np.testing.assert_allclose(metrics.tracking_ratio(peak, landmark), oracles.tracking_ratio(peak, landmark))


@pytest.mark.parametrize(("x", "y"), [(50, 50), (0, 100), (-3000, 17)])
def test_a_constant_peak_has_tracking_ratio_one(x: float, y: float) -> None:
    _, landmark, _ = scene(6)
    np.testing.assert_allclose(metrics.tracking_ratio(constant(40, x, y), landmark), 1, atol=1e-12)


def test_an_independent_uniform_peak_has_tracking_ratio_root_two() -> None:
    random = np.random.default_rng(0)
    ratio = metrics.tracking_ratio(random.random((4000, 20, 2)), random.random((4000, 1, 2)))
    assert ratio.mean() == pytest.approx(np.sqrt(2), abs=0.02)


def test_a_landmark_that_never_moves_cannot_be_tracked() -> None:
    peak, _, _ = scene(7)
    assert np.isnan(metrics.tracking_ratio(peak, constant(40, 5, 5))).all()


# Rates


def test_the_hit_rate_is_its_definition() -> None:
    peak, landmark, _ = scene(8)
    np.testing.assert_allclose(metrics.hit_rate(peak, landmark, 30.0), oracles.hit_rate(peak, landmark, 30.0))


def test_the_hit_rate_of_random_peaks_is_the_area_of_the_disc() -> None:
    n = 40_000
    rate = metrics.hit_rate(np.random.default_rng(0).random((n, 1, 2)), np.full((n, 1, 2), 0.5), 0.2)
    expected = np.pi * 0.2**2
    assert abs(rate[0, 0] - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_the_rim_is_a_hit_and_a_silent_filter_a_miss() -> None:
    landmark = constant(4, 0, 0)
    peak = np.array([[3, 4], [3, 4.001], [np.nan, np.nan], [0, 0]], float)[:, None]
    assert metrics.hit_rate(peak, landmark, 5.0)[0, 0] == 0.5


def test_the_radius_may_go_with_each_part_s_box() -> None:
    box = np.array([[[0, 0, 10, 4]], [[0, 0, 2, 4]]], float)
    radius = metrics.box_radius(box)
    np.testing.assert_array_equal(radius, [[5], [2]])
    landmark = np.array([[[5, 2]], [[1, 2]]], float)
    assert metrics.hit_rate(landmark + np.array([4, 0]), landmark, radius)[0, 0] == 0.5


def test_the_box_round_a_peak_is_72_of_224_pixels() -> None:
    landmark = np.array([[[136, 64], [136.1, 100]]], float)
    hits = metrics.box_hits(constant(1, 100, 100), landmark, (224, 224))
    np.testing.assert_array_equal(hits, [[[True, False]]])


def test_a_filter_is_consistent_from_80_percent_of_the_pictures_that_show_a_part() -> None:
    landmark = constant(12, 0, 0)
    landmark[10:] = np.nan
    peak = np.tile([0.0, 0.0], (12, 3, 1))
    peak[:2, 0], peak[:3, 1], peak[:, 2] = 99, 99, np.nan
    hits = metrics.box_hits(peak, landmark, (100, 100))
    np.testing.assert_array_equal(metrics.consistent(hits, landmark), [1, 0, 0])
    assert np.isnan(metrics.consistent(hits[10:], landmark[10:])).all()


def test_stability_is_the_share_of_pictures_with_unchanged_hits() -> None:
    hits = np.array([[[True, False]], [[True, False]], [[False, False]], [[True, True]]])
    noisy = np.array([[[True, False]], [[False, True]], [[False, False]], [[True, False]]])
    assert metrics.stability(hits, noisy)[0] == 0.5


# Classes


def test_purity_goes_from_one_over_classes_to_one() -> None:
    label = np.array([0, 0, 1, 1, 2, 2])
    strength = np.stack([np.ones(6), (label == 1) * 3.0, np.zeros(6), np.where(label == 2, 2, 1)], -1)
    np.testing.assert_allclose(metrics.class_purity(strength, label, 3), [1 / 3, 1, np.nan, 0.5])
    np.testing.assert_allclose(metrics.class_purity(strength * 1e6, label, 3), [1 / 3, 1, np.nan, 0.5])
    np.testing.assert_array_equal(metrics.own_category(strength, label, 3)[[1, 3]], [1, 2])


def test_an_absent_class_is_nobody_s_own() -> None:
    label = np.array([0, 0, 2])
    strength = -np.ones((3, 1)) * [[2], [2], [1]]
    assert metrics.own_category(strength, label, 4)[0] == 2


def test_a_feature_that_tells_a_class_carries_its_entropy() -> None:
    label = np.repeat([0, 1], 50)
    feature = np.stack([label * 1.0, np.ones(100)], -1)
    np.testing.assert_allclose(metrics.mutual_information(feature, label, 2), [[np.log(2)] * 2, [0, 0]], atol=1e-12)


def test_mutual_information_is_its_sum_over_bins() -> None:
    random = np.random.default_rng(0)
    label = random.integers(0, 3, 200)
    feature = np.maximum(random.normal(0, 1, (200, 4)) + label[:, None] * [0, 0.5, 1, 2], 0)
    got = metrics.mutual_information(feature, label, 3, bins=5)
    for j in range(4):
        edges = np.quantile(feature[:, j], [0.2, 0.4, 0.6, 0.8])
        bin_of = np.array([sum(value > edge for edge in edges) for value in feature[:, j]])
        for c in range(3):
            assert got[j, c] == pytest.approx(oracles.mutual_information(bin_of, label == c), abs=1e-12)


def test_mutual_information_approaches_the_integral_for_shifted_normals() -> None:
    label = np.repeat([0, 1], 50_000)
    feature = np.random.default_rng(0).normal(label * 2.0, 1)[:, None]
    x = np.linspace(-8, 10, 20_001)
    density = np.exp(-((x[:, None] - [0, 2]) ** 2) / 2) / np.sqrt(2 * np.pi)
    mixture = density.mean(1)
    expected = (density / 2 * np.log(density / mixture[:, None])).sum() * (x[1] - x[0])
    assert metrics.mutual_information(feature, label, 2, bins=40)[0, 0] == pytest.approx(expected, abs=0.006)


def test_unrelated_features_carry_no_more_than_the_estimator_s_bias() -> None:
    random = np.random.default_rng(0)
    found = metrics.mutual_information(random.random((2000, 50)), random.integers(0, 2, 2000), 2)
    assert found.mean() == pytest.approx(9 / 4000, rel=0.2)


# The real annotations: interpretable-cnn.md 3.3 gives these for the 30 categories of the source.


def test_the_controls_of_the_real_parts_are_what_the_paper_s_annotations_give(shared_data: Path) -> None:
    """Measured on the 20 categories here: centre .0687, random .1518, head tracker .0438 and R .109, 1.44."""
    pictures = read_pictures(shared_data / "animal-parts-20.npz")
    axis = (np.arange(14) + 0.5) * 16
    cells = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    random = np.random.default_rng(0)
    rows = []
    for number in range(len(pictures.names)):
        landmark = pictures.parts.xy[pictures.label == number].astype(float) * 224
        landmark = landmark[np.isfinite(landmark).all(-1).any(1)]
        head = landmark[:, :1]
        apart = np.linalg.norm(np.nan_to_num(head) - cells, axis=-1)
        tracker = np.where(np.isnan(head), np.nan, cells[apart.argmin(1)][:, None])
        peaks = {
            "centre": constant(len(landmark), 112, 112),
            "random": cells[random.integers(0, len(cells), (len(landmark), 50))],
            "fixed": np.broadcast_to(cells, (len(landmark), *cells.shape)),
            "head": tracker,
        }
        scores = {
            name: metrics.mean_known(metrics.location_instability(peak, landmark, 224 * np.sqrt(2)), 1)
            for name, peak in peaks.items()
        }
        ratio = metrics.tracking_ratio(tracker, landmark)[0]
        rows.append([scores["centre"][0], scores["random"].mean(), scores["fixed"].min(), scores["head"][0], *ratio])
    table = np.array(rows)
    both = np.isfinite(table).all(1)
    assert both.sum() == 19  # nobody marks a goldfish's forelimbs
    centre, uniform, best_fixed = table[:, :3].mean(0)
    head, head_ratio, limbs_ratio = table[both, 3:].mean(0)
    assert centre == pytest.approx(0.0687, abs=0.002)
    assert uniform == pytest.approx(0.152, abs=0.002)
    assert best_fixed == pytest.approx(0.0667, abs=0.002)
    assert head == pytest.approx(0.0438, abs=0.002)
    assert head_ratio == pytest.approx(0.11, abs=0.01)
    assert limbs_ratio == pytest.approx(1.45, abs=0.05)
