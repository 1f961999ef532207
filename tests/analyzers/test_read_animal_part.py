"""The Animal-Part set as it is cloned: labels, groups and marks out of a tiny tree."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from analyzers.errors import DataError
from analyzers.read_animal_part import read_animal_part
from analyzers.read_pictures import read_pictures
from tests.analyzers.test_readers import WHOLE, assert_marks, photograph, pixels, structs


def mark(*places: tuple[float, float, float, float]) -> dict[str, np.ndarray]:
    """Return marks (centre x, y, width, height in 224ths of the object) as the papers' code stores them."""
    columns = np.array(places, float).reshape(-1, 4).T
    return {"pHW_center": columns[[1, 0]], "pHW_scale": columns[[3, 2]]}


def animals(
    root: Path, wnid: str, boxes: list[tuple[int, int, int, int]], *truths: list[dict[str, np.ndarray]]
) -> None:
    """Write one category; all of its objects are in one photograph, of which there is a copy for each."""
    scipy_io = pytest.importorskip("scipy.io")
    names = ("xmin", "ymin", "xmax", "ymax")
    samples = [{"obj": {"bndbox": dict(zip(names, map(float, box), strict=True))}} for box in boxes]
    for number in range(1, len(boxes) + 1):
        photograph(root / f"{wnid}_obj" / "img" / "img" / f"{number:05d}.jpg", int(wnid[1:4]))
    scipy_io.savemat(root / f"{wnid}_obj" / "img" / "data.mat", {"samples": structs(samples)})
    for part, truth in enumerate(truths, 1):
        (root / wnid).mkdir(exist_ok=True)
        scipy_io.savemat(root / wnid / f"truth_part{part:02d}.mat", {"truth": structs(truth)})


@pytest.fixture
def animal_part(tmp_path: Path) -> Path:
    """Return a tree with two goldfish in one photograph, and a bird."""
    root = tmp_path / "data" / "detanimalpart"
    animals(root, "n01443537", [(11, 21, 70, 70), (1, 1, 60, 80)], [mark((56, 112, 56, 448)), mark()])
    heads, limbs = [mark((112, 112, 56, 56), (1, 1, 9, 9))], [mark((224, 56, 112, 56))]
    animals(root, "n01503061", [(1, 1, 100, 80)], heads, limbs)
    return root


def test_animal_part_gives_names_and_the_parts_that_are_marked_once(animal_part: Path) -> None:
    pictures = read_pictures(animal_part)
    assert pictures.names == ("goldfish", "bird")
    assert pictures.label.tolist() == [0, 0, 1]
    assert pictures.group.tolist() == [0, 0, 1]  # two copies of one photograph
    assert pictures.split[0] == pictures.split[1]
    assert pixels(pictures.encoded[0]).shape == (60, 60, 3)
    assert pictures.parts is not None
    assert_marks(pictures, 0, {"head": (0.25, 0.5)})
    np.testing.assert_allclose(pictures.parts.box[0, 0], [0.125, 0, 0.375, 1], atol=1e-6)  # clipped to the crop
    assert_marks(pictures, 1, {})
    assert_marks(pictures, 2, {"forelimbs": (1, 0.25)})  # the bird's head is marked twice


def test_animal_part_whole_pictures_show_each_photograph_once(animal_part: Path) -> None:
    pictures = read_animal_part(animal_part, WHOLE)
    assert pictures.label.tolist() == [0, 1]
    assert_marks(pictures, 1, {"forelimbs": (1, 0.25)})


def test_animal_part_marks_are_found_in_the_papers_code_or_where_one_says(animal_part: Path) -> None:
    code = animal_part.parent.parent / "code" / "data_input" / "data_input_DET-2015-subset-ILSVRC2013train"
    code.mkdir(parents=True)
    for wnid in ("n01443537", "n01503061"):
        shutil.move(animal_part / wnid, code)
    assert_marks(read_pictures(animal_part), 0, {"head": (0.25, 0.5)})
    elsewhere = shutil.move(code, animal_part.parent / "marks")
    assert read_pictures(animal_part).parts is None
    assert_marks(read_animal_part(animal_part, marks=elsewhere), 0, {"head": (0.25, 0.5)})
    with pytest.raises(DataError, match=r"lacks marks; expected <wnid>/truth_part01\.mat"):
        read_animal_part(animal_part, marks=animal_part.parent)


def test_animal_part_says_what_is_missing(animal_part: Path) -> None:
    images = animal_part / "n01503061_obj" / "img" / "img"
    shutil.copy(images / "00001.jpg", images / "00002.jpg")
    with pytest.raises(DataError, match=r"data.mat has 1 objects but none for 00002.jpg"):
        read_pictures(animal_part)
    (images.parent / "data.mat").unlink()
    with pytest.raises(DataError, match=r"there is no .*n01503061_obj/img/data.mat"):
        read_pictures(animal_part)
