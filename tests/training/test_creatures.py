from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from analyzers.errors import DataError, InvalidInputError
from analyzers.pictures import SPLITS, Pictures
from analyzers.read_pictures import read_pictures
from training.creatures import PART_NAMES, SPECIES, Creature, creatures, draw

SIZE = 64


@pytest.fixture(scope="module")
def drawn() -> list[Creature]:
    return [draw(3, index, SIZE) for index in range(400)]


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return creatures(64, seed=3, size=SIZE)


def assert_same(one: Creature, other: Creature) -> None:
    assert one.species == other.species
    for a, b in ((one.pixels, other.pixels), (one.part_xy, other.part_xy), (one.part_box, other.part_box)):
        np.testing.assert_array_equal(a, b)


def inside(box: npt.NDArray[np.float32], *, grown: int = 1) -> npt.NDArray[np.bool_]:
    """Return the mask of the pixels in a box of shares, `grown` pixels larger on each side."""
    x0, y0 = np.maximum(np.floor(box[:2] * SIZE).astype(int) - grown, 0)
    x1, y1 = np.ceil(box[2:] * SIZE).astype(int) + grown
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def changed(one: Creature, other: Creature) -> npt.NDArray[np.bool_]:
    return np.asarray((one.pixels != other.pixels).any(axis=2), np.bool_)


def test_there_are_eight_species_of_four_parts() -> None:
    assert len(set(SPECIES)) == 8
    assert PART_NAMES == ("head", "body", "limbs", "tail")


def test_a_picture_is_the_same_whenever_and_after_whatever_it_is_drawn(drawn: list[Creature]) -> None:
    for index in (9, 0, 323):
        assert_same(draw(3, index), drawn[index])


def test_another_index_or_seed_is_another_picture(drawn: list[Creature]) -> None:
    assert len({creature.pixels.tobytes() for creature in drawn}) == len(drawn)
    assert changed(draw(4, 0), drawn[0]).any()


@pytest.mark.parametrize("size", [48, 100, 224])
def test_a_picture_shows_the_same_at_any_size(size: int, drawn: list[Creature]) -> None:
    for index in range(len(SPECIES)):
        creature = draw(3, index, size)
        assert creature.pixels.shape == (size, size, 3)
        assert creature.pixels.dtype == np.uint8
        np.testing.assert_allclose(creature.part_box[0], drawn[index].part_box[0], atol=0.03)
        np.testing.assert_allclose(creature.part_xy[:2], drawn[index].part_xy[:2], atol=0.03)


def test_marks_are_shares_of_the_picture_and_centres_lie_in_their_boxes(drawn: list[Creature]) -> None:
    xy = np.stack([creature.part_xy for creature in drawn])
    box = np.stack([creature.part_box for creature in drawn])
    assert xy.dtype == box.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(xy).any(axis=2), np.isnan(box).all(axis=2))
    visible = ~np.isnan(xy).any(axis=2)
    assert visible.mean(axis=0).min() > 0.9
    xy, box = xy[visible], box[visible]
    assert (box >= 0).all()
    assert (box <= 1).all()
    assert (box[:, :2] < xy).all()
    assert (xy < box[:, 2:]).all()


def test_the_head_is_always_wholly_in_the_picture(drawn: list[Creature]) -> None:
    box = np.stack([creature.part_box[PART_NAMES.index("head")] for creature in drawn])
    assert (box > 0).all()
    assert (box < 1).all()


@pytest.mark.parametrize("name", PART_NAMES)
def test_a_part_left_out_changes_pixels_only_in_its_box_and_all_over_it(name: str, drawn: list[Creature]) -> None:
    part = PART_NAMES.index(name)
    for index in range(32):
        box = drawn[index].part_box[part]
        if np.isnan(box).any():
            continue
        bare = draw(3, index, without=frozenset({name}))
        difference = changed(drawn[index], bare)
        assert not (difference & ~inside(box)).any()
        y, x = np.nonzero(difference)
        extent = np.array((x.min(), y.min(), x.max() + 1, y.max() + 1))
        np.testing.assert_allclose(extent, box * SIZE, atol=2.5, err_msg=f"picture {index}")


def test_a_part_left_out_has_no_marks_and_hides_nothing(drawn: list[Creature]) -> None:
    for part, name in enumerate(PART_NAMES):
        others = [other for other in range(len(PART_NAMES)) if other != part]
        for index in range(16):
            bare = draw(3, index, without=frozenset({name}))
            assert np.isnan(bare.part_xy[part]).all()
            assert np.isnan(bare.part_box[part]).all()
            before, after = drawn[index].part_box[others], bare.part_box[others]
            kept = ~np.isnan(before).any(axis=1)
            assert (after[kept, :2] <= before[kept, :2]).all()
            assert (after[kept, 2:] >= before[kept, 2:]).all()


def test_without_all_parts_only_the_surroundings_are_left_and_they_do_not_depend_on_the_species() -> None:
    empty = [draw(3, 5, species=species, without=frozenset(PART_NAMES)) for species in range(len(SPECIES))]
    for creature in empty:
        np.testing.assert_array_equal(creature.pixels, empty[0].pixels)
        assert np.isnan(creature.part_xy).all()


def test_an_unknown_part_cannot_be_left_out() -> None:
    with pytest.raises(InvalidInputError, match="wings"):
        draw(0, 0, without=frozenset({"wings"}))


def test_colours_do_not_give_the_species_away(drawn: list[Creature]) -> None:
    colour = np.stack([creature.pixels.mean(axis=(0, 1)) for creature in drawn])
    label = np.array([creature.species for creature in drawn])
    half = len(drawn) // 2
    means = np.stack([colour[:half][label[:half] == species].mean(axis=0) for species in range(len(SPECIES))])
    nearest = np.linalg.norm(colour[half:, None] - means, axis=2).argmin(axis=1)
    assert (nearest == label[half:]).mean() < 2 / len(SPECIES)


def test_a_data_set_holds_the_drawn_pictures_and_their_marks(pictures: Pictures, drawn: list[Creature]) -> None:
    assert pictures.names == SPECIES
    assert len(pictures) == 64
    decoded = pictures.decoded(SIZE, SIZE)
    parts = pictures.parts
    assert parts is not None
    assert parts.names == PART_NAMES
    for row in range(len(pictures)):
        shown = Creature(decoded[row], int(pictures.label[row]), parts.xy[row], parts.box[row])
        assert_same(shown, drawn[row])


def test_splits_are_balanced_and_no_picture_is_in_both(pictures: Pictures) -> None:
    for split, count in zip(SPLITS, (48, 16), strict=True):
        label = pictures.of_split(split).label
        np.testing.assert_array_equal(np.bincount(label, minlength=len(SPECIES)), count // len(SPECIES))
    np.testing.assert_array_equal(pictures.group, np.arange(64))


def test_a_larger_data_set_begins_with_the_smaller_one(pictures: Pictures) -> None:
    assert creatures(8, seed=3, size=SIZE).encoded == pictures.encoded[:8]


def test_pictures_without_parts_go_through_a_pack_and_are_the_truth(tmp_path: Path) -> None:
    drawn = creatures(8, size=SIZE, without=True)
    drawn.save(tmp_path / "c.npz")
    again = read_pictures(tmp_path / "c.npz")
    assert again.without == drawn.without
    assert again.take(np.array([5])).without == (drawn.without[5],)
    assert read_pictures_of(creatures(8, size=SIZE), tmp_path).without is None
    for row in range(8):
        for part, encoded in zip(PART_NAMES, drawn.without[row], strict=True):
            assert encoded == _png_of(draw(0, row, SIZE, without=frozenset({part})).pixels)


def read_pictures_of(pictures: Pictures, folder: Path) -> Pictures:
    pictures.save(folder / "other.npz")
    return read_pictures(folder / "other.npz")


def _png_of(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def test_copies_that_do_not_fit_the_pictures_are_refused(tmp_path: Path) -> None:
    creatures(8, size=SIZE, without=True).save(tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz") as pack:
        arrays = dict(pack)
    arrays["without_offsets"] = arrays["without_offsets"][:-1]
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(DataError, match="without_offsets do not fit 8 pictures"):
        read_pictures(tmp_path / "c.npz")
