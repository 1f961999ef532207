"""The feature cache: what goes in comes out within half a level, sizes are kept, and scales are those of the maps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from analyzers.errors import DataError
from training.feature_cache import FeatureCache, Filters, loads


class Given:
    """Maps that are there already; counts how often they were asked for."""

    def __init__(self, maps: dict[str, np.ndarray]) -> None:
        self.maps, self.asked = maps, 0
        self.pictures = len(next(iter(maps.values())))

    def batches(self, tensors: list[str]) -> Iterator[dict[str, np.ndarray]]:
        self.asked += 1
        for start in range(0, self.pictures, 7):
            yield {name: self.maps[name][start : start + 7] for name in tensors}


@pytest.fixture
def source() -> Given:
    random = np.random.default_rng(0)
    maps = {"a": random.normal(-0.5, 1, (20, 3, 5, 6)), "b": random.exponential(2, (20, 2, 4, 4))}
    maps["a"][:, 2] = -1  # never fires
    return Given({name: values.astype(np.float32) for name, values in maps.items()})


PARTS = [Filters("a", (5, 6), 0, 3), Filters("b", (4, 4), 0, 2)]


def test_activations_are_the_maps_over_their_scale_less_their_floor(source: Given, tmp_path: Path) -> None:
    cache = FeatureCache(PARTS, 20, tmp_path / "maps.bin")
    assert cache.fill(source) == 2 == source.asked
    for tensor, number in (("a", 0), ("a", 1), ("b", 1)):
        positive = np.maximum(source.maps[tensor][:, number], 0).astype(np.float64)
        scale, floor = cache.factors(tensor, number)
        level = positive.max() / 255 / scale
        assert scale == pytest.approx(positive.std(), rel=0.01)
        dense = tensor == "b"  # the other is 0 in most of its cells
        assert floor * scale == pytest.approx(np.quantile(positive, 0.9) if dense else 0, abs=2 * level * scale)
        want = np.maximum(positive / scale - floor, 0)
        np.testing.assert_allclose(cache.filter(tensor, number), want, atol=0.51 * level)
        some = np.array([3, 19])
        np.testing.assert_array_equal(cache.filter(tensor, number, some), cache.filter(tensor, number)[some])
    assert cache.factors("a", 2)[0] == 0  # dead
    assert cache.size_bytes == (tmp_path / "maps.bin").stat().st_size == 20 * (3 * 30 + 2 * 16)


def test_a_complete_file_is_taken_as_it_is_and_a_partial_one_is_not(source: Given, tmp_path: Path) -> None:
    FeatureCache(PARTS, 20, tmp_path / "maps.bin").fill(source)
    again = FeatureCache(PARTS, 20, tmp_path / "maps.bin")
    assert again.fill(source) == 0
    assert source.asked == 2
    (tmp_path / "maps.json").unlink()  # written last
    assert FeatureCache(PARTS, 20, tmp_path / "maps.bin").fill(source) == 2
    again.close()
    assert not list(tmp_path.iterdir())


def test_loads_fit_the_limit_and_hold_every_filter_once() -> None:
    layers = [Filters("a", (10, 10), 0, 30), Filters("b", (20, 20), 0, 7)]
    for limit in (4_000, 10_000, 58_000):
        plan = loads(layers, 10, limit)
        assert all(sum(part.size_bytes(10) for part in load) <= limit for load in plan)
        held = [(part.tensor, number) for load in plan for part in load for number in range(part.first, part.stop)]
        assert held == [("a", n) for n in range(30)] + [("b", n) for n in range(7)]
    assert len(loads(layers, 10, 58_000)) == 1
    with pytest.raises(DataError, match=r"one filter of 'b' takes .* for 10 pictures, more than"):
        loads(layers, 10, 3_999)


def test_maps_of_another_shape_or_number_are_refused(source: Given, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'a' has shape \[7, 3, 5, 6\], expected 6 x 6 cells"):
        FeatureCache([Filters("a", (6, 6), 0, 3)], 20, tmp_path / "maps.bin").fill(source)
    with pytest.raises(DataError, match="maps of 20 pictures, expected 21"):
        FeatureCache(PARTS, 21, tmp_path / "maps.bin").fill(source)
