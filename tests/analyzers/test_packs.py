"""Packs and folders as people make them: what does not fit is refused with a sentence, and nothing is guessed."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analyzers.errors import DataError, PellucidError
from analyzers.pictures import PartMarks, Pictures
from analyzers.read_pictures import read_pictures
from tests.conftest import NAMES, SIZE, png, random_pictures

COUNT = 6


def pictures() -> Pictures:
    marks = PartMarks(
        ("head", "tail"),
        np.arange(COUNT * 4, dtype=np.float32).reshape(COUNT, 2, 2),
        np.arange(COUNT * 8, dtype=np.float32).reshape(COUNT, 2, 4),
    )
    return replace(random_pictures(COUNT), parts=marks, group=np.array([5, 5, 1, 0, 2, 2]))


def pack_with(path: Path, **changes: np.ndarray | None) -> Path:
    """Save a pack some of whose arrays are replaced, or left out where None."""
    pictures().save(path)
    with path.open("rb") as file, np.load(file) as pack:
        arrays = {name: pack[name] for name in pack.files} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offsets": np.arange(COUNT + 1) * 1.0}, "offsets is float64 [7]"),
        ({"offsets": np.arange(COUNT + 1)[None]}, "offsets is int64 [1, 7]"),
        ({"offsets": np.array([], np.int64)}, "offsets do not fit 6 labels"),
        ({"offsets": np.arange(COUNT + 1) - 1}, "offsets do not fit 6 labels"),
        ({"label": np.array(list("abcdef"))}, "label is <U1 [6]"),
        ({"label": np.arange(COUNT) * 0.5}, "label is float64 [6]"),
        ({"label": np.zeros((COUNT, 1), int)}, "label is int64 [6, 1]"),
        ({"label": np.arange(COUNT) - 1}, "labels reach -1 but there are 3 names"),
        ({"label": np.arange(COUNT)}, "labels reach 5 but there are 3 names"),
        ({"names": np.array("cat")}, "names is <U3 []"),
        ({"names": np.array([1, 2, 3])}, "names is int64 [3]"),
        ({"split": np.zeros(COUNT - 1, int)}, "split is int64 [5]"),
        ({"split": np.zeros(COUNT + 1, int)}, "split is int64 [7]"),
        ({"picture_id": np.array(list("abcdef"))}, "picture_id is <U1 [6]"),
        ({"picture_id": np.arange(2)}, "picture_id is int64 [2]"),
        ({"image": np.zeros(9999, np.int64)}, "image is int64 [9999]"),
        ({"image": np.zeros((1, 9999), np.uint8)}, "image is uint8 [1, 9999]"),
        ({"part_xy": np.zeros((2, 2, 2), np.float32)}, "part_xy is float32 [2, 2, 2]"),
        ({"part_names": np.array(["head"])}, "part_xy and part_box do not fit 1 part_names"),
        ({"image": None, "names": None}, "lacks image, names"),
        ({"label": None}, "lacks label"),
    ],
)
def test_an_array_of_another_shape_or_kind_is_named(
    tmp_path: Path, changes: dict[str, np.ndarray | None], words: str
) -> None:
    path = pack_with(tmp_path / "pack.npz", **changes)
    with pytest.raises(DataError) as caught:
        read_pictures(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)


def test_what_is_optional_has_its_documented_default(tmp_path: Path) -> None:
    path = pack_with(tmp_path / "pack.npz", split=None, picture_id=None, part_xy=None, extra=np.zeros((2, 2)))
    read = read_pictures(path)
    assert read.split.tolist() == [0] * COUNT
    assert read.group.tolist() == list(range(COUNT))
    assert read.parts is None


def test_every_array_survives_a_round_trip(tmp_path: Path) -> None:
    saved = pictures()
    saved.save(tmp_path / "pack.npz")
    read = read_pictures(tmp_path / "pack.npz")
    assert (read.names, read.encoded) == (saved.names, saved.encoded)
    for name in ("label", "split", "group"):
        assert getattr(read, name).dtype == np.int64
        np.testing.assert_array_equal(getattr(read, name), getattr(saved, name))
    assert read.parts.names == saved.parts.names
    np.testing.assert_array_equal(read.parts.xy, saved.parts.xy)
    np.testing.assert_array_equal(read.parts.box, saved.parts.box)


def test_the_same_pictures_are_the_same_bytes_on_disk(tmp_path: Path) -> None:
    for name in ("one", "two"):
        pictures().save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_labels_beyond_a_byte_are_kept(tmp_path: Path) -> None:
    many = tuple(f"class {number}" for number in range(300))
    replace(pictures(), names=many, label=np.array([0, 255, 256, 257, 298, 299])).save(tmp_path / "pack.npz")
    assert read_pictures(tmp_path / "pack.npz").label.tolist() == [0, 255, 256, 257, 298, 299]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_pack_is_a_pack_or_an_error_of_ours(tmp_path: Path, compressed: bool) -> None:
    pictures().save(tmp_path / "pack.npz")
    if compressed:
        with (tmp_path / "pack.npz").open("rb") as file, np.load(file) as pack:
            np.savez_compressed(tmp_path / "pack.npz", **pack)
    data = np.frombuffer((tmp_path / "pack.npz").read_bytes(), np.uint8)
    random, refused = np.random.default_rng(0), 0
    for _ in range(200):
        damaged = data.copy()
        damaged[random.integers(0, len(data), 3)] = random.integers(0, 256, 3)
        (tmp_path / "pack.npz").write_bytes(damaged[: random.integers(1, 2 * len(data))].tobytes())
        try:
            read_pictures(tmp_path / "pack.npz").of_split("all")
        except PellucidError:
            refused += 1
    assert refused > 150


def test_arrays_that_are_no_pack_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    pickled = pack_with(tmp_path / "pickled.npz", names=np.array(["cat", None, 3], object))
    (tmp_path / "lone.npz").write_bytes(buffer.getvalue())
    for path in (pickled, tmp_path / "lone.npz"):
        with pytest.raises(DataError, match=r"is not a \.npz pack, or a damaged one"):
            read_pictures(path)


def test_a_pack_without_pictures_has_no_split_to_take() -> None:
    for split in ("all", "train", "test"):
        with pytest.raises(DataError, match="the data holds no picture"):
            pictures().take(np.array([], np.int64)).of_split(split)


def test_rows_are_taken_with_everything_that_belongs_to_them() -> None:
    whole, rows = pictures(), np.array([4, 0])
    taken = whole.take(rows)
    assert taken.encoded == (whole.encoded[4], whole.encoded[0])
    assert (taken.label.tolist(), taken.group.tolist()) == ([1, 0], [2, 5])
    np.testing.assert_array_equal(taken.parts.xy, whole.parts.xy[rows])
    np.testing.assert_array_equal(taken.parts.box, whole.parts.box[rows])


@pytest.mark.parametrize("size", [1, 4, 6, 50])
def test_batches_in_a_row_are_all_the_pictures(size: int) -> None:
    batches = list(pictures().batches(SIZE, SIZE, size))
    assert all(len(batch) == size for batch in batches[:-1])
    np.testing.assert_array_equal(np.concatenate(batches), pictures().decoded(SIZE, SIZE))


def test_a_picture_that_cannot_be_decoded_is_named_by_its_row() -> None:
    broken = replace(pictures(), encoded=(*pictures().encoded[:3], b"no picture", *pictures().encoded[4:]))
    with pytest.raises(PellucidError, match=r"^picture 3 \(\w+\): "):
        broken.decoded(8, 8)


def test_every_order_of_the_classes_gives_every_picture_its_own_name() -> None:
    whole = pictures()
    for names in (NAMES, ("owl", "dog", "cat"), ("dog", "owl", "cat")):
        other = whole.relabelled(names)
        assert other.names == names
        assert [names[label] for label in other.label] == [whole.names[label] for label in whole.label]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("cat", "dog"), "only one of them has owl"),
        (("cat", "dog", "owl", "yak"), "only one of them has yak"),
        (("cat", "dog", "Owl"), "only one of them has Owl, owl"),
    ],
)
def test_other_classes_are_refused_naming_them(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        pictures().relabelled(names)


def test_two_classes_of_one_name_are_told_apart_by_their_order_only() -> None:
    twins = replace(pictures(), names=("crane", "crane", "owl"))
    assert twins.relabelled(("crane", "crane", "owl")) is twins
    with pytest.raises(DataError, match="two classes have the same name"):
        twins.relabelled(("crane", "owl", "crane"))


def test_hidden_folders_and_loose_files_are_no_classes(tmp_path: Path) -> None:
    for folder in ("cat", "dog/deeper", ".ipynb_checkpoints"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "one.PNG").write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    (tmp_path / "loose.png").write_bytes(b"")
    read = read_pictures(tmp_path)
    assert (read.names, read.label.tolist()) == (("cat", "dog"), [0, 1])


def test_a_folder_with_only_one_split_is_that_split(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "one.png").write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    read = read_pictures(tmp_path)
    assert (read.names, read.split.tolist()) == (NAMES, [1, 1, 1])


def test_a_class_of_one_split_keeps_its_number_in_both(tmp_path: Path) -> None:
    for folder in ("train/b", "test/a", "test/b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "one.png").write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    read = read_pictures(tmp_path)
    assert (read.names, read.label.tolist(), read.split.tolist()) == (("a", "b"), [1, 0, 1], [0, 1, 1])
