"""CUB-200-2011 and VOC-Part as they are downloaded: labels, splits, groups and marks out of tiny trees."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from analyzers.errors import DataError
from analyzers.pictures import Pictures
from analyzers.read_cub import INDEX_FILES, read_cub
from analyzers.read_objects import ReadOptions
from analyzers.read_pictures import read_pictures
from analyzers.read_voc_part import LANDMARKS, PART_GROUPS, read_voc_part

WHOLE = ReadOptions(crop=False)
NAN = (np.nan, np.nan)


def photograph(path: Path, grey: int, box: tuple[int, int, int, int] = (0, 0, 0, 0), turn: int = 1) -> None:
    """Write a 100 x 80 JPEG: a white box on grey."""
    image = Image.new("RGB", (100, 80), (grey,) * 3)
    image.paste((255, 255, 255), box)
    exif = Image.Exif()
    exif[0x0112] = turn
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=95, exif=exif)


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def assert_marks(pictures: Pictures, row: int, xy: dict[str, tuple[float, float]], atol: float = 1e-6) -> None:
    assert pictures.parts is not None
    expected = np.array([xy.get(name, NAN) for name in pictures.parts.names])
    np.testing.assert_allclose(pictures.parts.xy[row], expected, atol=atol)


# --- CUB-200-2011


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    """Return a tree with three birds: one cut to its box, one to the photograph's edge, one too small."""
    root = tmp_path / "CUB_200_2011"
    photograph(root / "images" / "1.Auk" / "a.jpg", 10, (10, 20, 70, 70))
    photograph(root / "images" / "2.Wren" / "b.jpg", 20)
    photograph(root / "images" / "2.Wren" / "c.jpg", 30)
    tables = (
        "1 1.Auk/a.jpg\n2 2.Wren/b.jpg\n5 2.Wren/c.jpg\n",
        "1 1.Auk\n2 2.Wren\n",
        "1 1\n2 2\n5 2\n",
        "1 1\n2 0\n5 1\n",
        "1 10.0 20.0 60.0 50.0\n2 60.0 0.0 50.0 80.0\n5 0.0 0.0 49.0 51.0\n",
        "1 back\n2 beak\n3 right eye\n",
        "1 1 40.0 45.0 1\n1 2 5.0 45.0 1\n1 3 0.0 0.0 0\n2 1 80.0 20.0 1\n2 3 70.0 80.0 1\n",
    )
    for name, text in zip(INDEX_FILES, tables, strict=True):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


def test_cub_gives_its_labels_split_and_the_points_that_are_visible_in_the_crop(cub: Path) -> None:
    pictures = read_pictures(cub)
    assert pictures.names == ("1.Auk", "2.Wren")
    assert pictures.label.tolist() == [0, 1]  # the third bird has fewer than 50 x 50 pixels
    assert pictures.split.tolist() == [0, 1]
    assert pictures.parts is not None
    assert pictures.parts.names == ("back", "beak", "right eye")
    assert_marks(pictures, 0, {"back": (0.5, 0.5)})  # the beak is outside of the box, the eye is hidden
    assert_marks(pictures, 1, {"back": (0.5, 0.25), "right eye": (0.25, 1)})  # the box ends with the photograph
    assert np.isnan(pictures.parts.box).all()


def test_a_crop_is_the_object_alone_stretched_to_a_square_and_never_enlarged(cub: Path) -> None:
    crop = pixels(read_cub(cub).encoded[0])
    assert crop.shape == (60, 60, 3)
    assert crop.min() > 220
    assert pixels(read_cub(cub, ReadOptions(size=32)).encoded[0]).shape == (32, 32, 3)


def test_small_objects_stay_if_asked_for(cub: Path) -> None:
    assert read_cub(cub, ReadOptions(min_side=49)).label.tolist() == [0, 1, 1]


def test_whole_pictures_are_passed_on_unchanged_with_marks_in_their_own_frame(cub: Path) -> None:
    pictures = read_cub(cub, WHOLE)
    assert pictures.encoded[0] == (cub / "images" / "1.Auk" / "a.jpg").read_bytes()
    assert_marks(pictures, 0, {"back": (0.4, 45 / 80), "beak": (0.05, 45 / 80)})


def test_an_exif_turn_moves_no_mark_because_boxes_are_those_of_the_stored_pixels(cub: Path) -> None:
    photograph(cub / "images" / "1.Auk" / "a.jpg", 10, (10, 20, 70, 70), turn=6)
    assert pixels(read_cub(cub).encoded[0]).min() > 220
    whole = read_cub(cub, WHOLE)
    assert whole.take(np.array([0])).decoded(80, 100)[0, 25:65, 15:65].min() > 220


def test_a_photograph_that_cub_has_on_both_sides_stays_in_test_only(cub: Path) -> None:
    shutil.copy(cub / "images" / "2.Wren" / "b.jpg", cub / "images" / "2.Wren" / "c.jpg")
    (cub / "bounding_boxes.txt").write_text("1 10 20 60 50\n2 60 0 50 80\n5 0 0 60 60\n")
    pictures = read_cub(cub)
    assert (pictures.label.tolist(), pictures.split.tolist()) == ([0, 1], [0, 1])


@pytest.mark.parametrize("name", [name for name in INDEX_FILES if name not in ("images.txt", "parts/part_locs.txt")])
def test_a_missing_index_file_of_cub_is_named(cub: Path, name: str) -> None:
    (cub / name).unlink()
    with pytest.raises(DataError, match=f"lacks {name};"):
        read_pictures(cub)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("images.txt", "one 1.Auk/a.jpg\n", "images.txt is damaged; expected lines '<number> <name>'"),
        ("bounding_boxes.txt", "1 10 20 60\n", "bounding_boxes.txt is damaged; expected 5 numbers a line"),
        ("train_test_split.txt", "1 1\n2 0\n", "train_test_split.txt has no line for image 5 (2.Wren/c.jpg)"),
        ("image_class_labels.txt", "1 1\n2 2\n5 7\n", "has class 7, which classes.txt does not have"),
        ("parts/part_locs.txt", "1 9 1 1 1\n", "has image 1, part 9, which images.txt or parts.txt does not have"),
    ],
)
def test_a_damaged_index_file_of_cub_is_named(cub: Path, name: str, text: str, sentence: str) -> None:
    (cub / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_cub(cub)
    assert sentence in str(caught.value)


def test_unreadable_photographs_are_counted_and_named_or_skipped(cub: Path) -> None:
    (cub / "images" / "2.Wren" / "c.jpg").unlink()
    cut = cub / "images" / "1.Auk" / "a.jpg"
    cut.write_bytes(cut.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"2 of 3 pictures .* images/1.Auk/a.jpg \(.*truncated.*; images/2.Wren/c.jpg"):
        read_cub(cub)
    with pytest.raises(DataError, match=r"1 of 2 classes have no picture: 1\.Auk;"):
        read_cub(cub, ReadOptions(unreadable="skip"))
    photograph(cut, 10)
    assert read_cub(cub, ReadOptions(unreadable="skip")).label.tolist() == [0, 1]
    shutil.rmtree(cub / "images")
    with pytest.raises(DataError, match="2 of 2 classes have no picture"):
        read_cub(cub, ReadOptions(unreadable="skip"))


# --- PASCAL VOC-Part


def mask(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    marked = np.zeros((80, 100), np.uint8)
    marked[y0:y1, x0:x1] = 1
    return marked


def structs(rows: list[dict[str, Any]]) -> np.ndarray:
    """Return what scipy writes as a MATLAB array of structs; empty ones have no fields."""
    array = np.zeros((1, len(rows)), [(name, object) for name in (rows[0] if rows else "")] or float)
    for column, row in enumerate(rows):
        array[0, column] = tuple(row.values())
    return array


def annotate(root: Path, stem: str, *objects: tuple[str, np.ndarray, dict[str, np.ndarray]]) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    rows = [
        {"class": name, "mask": silhouette, "parts": structs([{"part_name": k, "mask": v} for k, v in parts.items()])}
        for name, silhouette, parts in objects
    ]
    (root / "Annotations_Part").mkdir(parents=True, exist_ok=True)
    scipy_io.savemat(root / "Annotations_Part" / f"{stem}.mat", {"anno": {"imname": stem, "objects": structs(rows)}})


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Return a tree with a bird beside a person, two cows in one photograph, and one of each other animal."""
    root = tmp_path / "VOC_part"
    bird = {"head": mask(20, 10, 30, 20), "beak": mask(30, 14, 40, 18), "lleg": mask(10, 50, 14, 60)}
    person = ("person", mask(70, 0, 100, 80), {"head": mask(70, 0, 80, 10)})
    annotate(root, "2008_1", ("bird", mask(10, 10, 70, 60), bird), person)
    cow = {"torso": mask(0, 0, 50, 40), "neck": mask(50, 0, 60, 10), "tail": mask(0, 0, 2, 20)}
    larger, too_small = ("cow", mask(0, 0, 100, 80), {}), ("cow", mask(0, 0, 9, 9), {})
    annotate(root, "2008_2", ("cow", mask(0, 0, 60, 60), cow), larger, too_small)
    for number, name in enumerate(("cat", "dog", "horse", "sheep"), 3):
        annotate(root, f"2008_{number}", (name, mask(0, 0, 60, 60), {"muzzle": mask(0, 0, 30, 30)}))
    for number in range(1, 7):
        photograph(root / "VOCdevkit" / "VOC2010" / "JPEGImages" / f"2008_{number}.jpg", 30 * number)
    lists = root / "VOCdevkit" / "VOC2010" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2008_1\n2008_3\n2008_5\n")
    (lists / "val.txt").write_text("2008_2\n2008_4\n2008_6\n")
    return root


def test_voc_part_gives_a_crop_for_each_animal_with_its_parts_merged(voc: Path) -> None:
    pictures = read_pictures(voc)
    assert pictures.names == ("bird", "cat", "cow", "dog", "horse", "sheep")
    assert [pictures.names[label] for label in pictures.label] == ["bird", "cow", "cow", "cat", "dog", "horse", "sheep"]
    assert pictures.split.tolist() == [0, 1, 1, 0, 1, 0, 1]  # VOC's train and val
    assert pictures.group.tolist() == [0, 1, 1, 2, 3, 4, 5]
    assert pictures.parts is not None
    assert pictures.parts.names == ("head", "torso", "legs", "tail", "front legs", "back legs")
    assert_marks(pictures, 0, {"head": (20 / 60, 0.1), "legs": (2 / 60, 0.9)})  # the head's box is 20..40, 10..20
    np.testing.assert_allclose(pictures.parts.box[0, 0], [10 / 60, 0, 0.5, 0.2], atol=1e-6)
    assert_marks(pictures, 1, {"torso": (0.5, 1 / 3)})  # with its neck; a cow's tail is no part
    assert_marks(pictures, 3, {})  # a cat's head has no muzzle, a dog's has
    assert_marks(pictures, 4, {"head": (0.25, 0.25)})


def test_voc_part_whole_pictures_go_by_their_largest_object(voc: Path) -> None:
    pictures = read_voc_part(voc, WHOLE)
    assert len(pictures) == 6
    assert_marks(pictures, 1, {})  # the larger cow, which has no parts


def test_voc_part_can_be_read_with_the_papers_landmarks_of_some_classes(voc: Path) -> None:
    pictures = read_voc_part(voc, groups={"cow": LANDMARKS["cow"]})
    assert pictures.names == ("cow",)
    assert_marks(pictures, 0, {"neck": (55 / 60, 5 / 60), "torso": (25 / 60, 20 / 60)})


def test_voc_part_says_what_is_missing(voc: Path) -> None:
    (voc / "Annotations_Part" / "2008_6.mat").unlink()
    with pytest.raises(DataError, match="1 of 6 classes have no picture: sheep"):
        read_pictures(voc)
    (voc / "Annotations_Part" / "2008_5.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(DataError, match=r"2008_5.mat cannot be read as a MATLAB file"):
        read_pictures(voc)
    shutil.rmtree(voc / "VOCdevkit")
    with pytest.raises(DataError, match="lacks JPEGImages"):
        read_pictures(voc)


def test_every_part_of_the_papers_code_is_in_one_group() -> None:
    sizes = {name: [len(merged) for merged in groups.values()] for name, groups in PART_GROUPS.items()}
    cow = [8, 2, 4, 4]
    assert sizes == {"bird": [4, 4, 4, 1], "cat": [6, 2, 4, 4, 1], "cow": cow, "dog": [7, 2, 4, 4, 1],
                     "horse": [6, 2, 6, 6], "sheep": cow}  # fmt: skip
