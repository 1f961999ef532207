"""Packs, folders and pixels."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analyzers.errors import DataError, InvalidInputError
from analyzers.pictures import PartMarks
from analyzers.pixels import decode, to_model_input
from analyzers.read_pictures import read_pictures
from tests.conftest import NAMES, png, random_pictures


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(height: int = 8, width: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_a_pack_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    marks = PartMarks(("head",), np.zeros((30, 1, 2), np.float32), np.zeros((30, 1, 4), np.float32))
    saved = replace(random_pictures(), parts=marks)
    saved.save(tmp_path / "pack.npz")
    read = read_pictures(tmp_path / "pack.npz")
    assert (read.names, read.encoded, read.parts.names) == (saved.names, saved.encoded, ("head",))
    for name in ("label", "split", "group"):
        assert np.array_equal(getattr(read, name), getattr(saved, name))
    assert read.fingerprint() == saved.fingerprint()


def test_the_fingerprint_changes_with_any_picture_label_or_name() -> None:
    pictures = random_pictures()
    label = pictures.label.copy()
    label[3] = 2 - label[3]
    others = [
        replace(pictures, label=label),
        replace(pictures, names=("cat", "dog", "elk")),
        replace(pictures, encoded=(*pictures.encoded[1:], pictures.encoded[0])),
    ]
    assert len({p.fingerprint() for p in (pictures, *others)}) == 4


def broken_pack(folder: Path, **changes: object) -> Path:
    random_pictures().save(folder / "pack.npz")
    with np.load(folder / "pack.npz") as pack:
        arrays = {name: pack[name] for name in pack.files} | changes
    np.savez(folder / "pack.npz", **{name: array for name, array in arrays.items() if array is not None})
    return folder / "pack.npz"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": None}, "lacks label"),
        ({"names": np.array(["cat"])}, "labels reach 2 but there are 1 names"),
        ({"offsets": np.arange(10)}, "offsets do not fit"),
        ({"offsets": np.arange(31)[::-1]}, "offsets do not fit"),
        ({"offsets": np.arange(31) * 10**9}, "offsets do not fit"),
    ],
)
def test_a_pack_that_does_not_fit_together_is_refused(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_pictures(broken_pack(tmp_path, **changes))


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04 truncated"])
def test_a_file_that_is_no_pack_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "pack.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"is not a \.npz pack"):
        read_pictures(tmp_path / "pack.npz")


def test_a_folder_has_its_classes_as_sub_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in NAMES:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            (folder / "one.png").write_bytes(png(rgb()))
            (folder / "notes.txt").write_text("not a picture")
    read = read_pictures(tmp_path / "data")
    assert (read.names, len(read), read.split.tolist()) == (NAMES, 6, [0, 0, 0, 1, 1, 1])
    flat = read_pictures(tmp_path / "data" / "train")
    assert (flat.names, flat.split.tolist()) == (NAMES, [0, 0, 0])


def test_an_empty_folder_and_nothing_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures; expected one sub-folder a class"):
        read_pictures(tmp_path)
    with pytest.raises(DataError, match="there is no data at"):
        read_pictures(tmp_path / "nowhere")


def test_splits_are_taken_by_name(tmp_path: Path) -> None:
    pictures = random_pictures()
    assert [len(pictures.of_split(split)) for split in ("train", "test", "all")] == [20, 10, 30]
    with pytest.raises(DataError, match="unknown split"):
        pictures.of_split("validation")
    with pytest.raises(DataError, match="no picture in its test split; 'all' takes every picture"):
        replace(pictures, split=np.zeros(30, np.int64)).of_split("test")


def test_labels_are_matched_by_name() -> None:
    pictures = random_pictures(3)
    other = pictures.relabelled(("owl", "cat", "dog"))
    assert [other.names[label] for label in other.label] == [pictures.names[label] for label in pictures.label]


def test_pixels_become_shares_of_255_channels_first() -> None:
    pixels = rgb(4, 5)[None]
    expected = (pixels.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2)
    assert to_model_input(pixels).flags.c_contiguous
    np.testing.assert_array_equal(to_model_input(pixels), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_pictures_of_the_model_s_size_are_not_touched(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = decode(encode(Image.fromarray(rgb()), kind, **options), 8, 12)
    np.testing.assert_array_equal(picture.pixels, rgb())
    assert (picture.source_width, picture.source_height) == (12, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_by_exif(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(rgb()), "PNG", exif=exif)
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    picture = decode(data, *upright.shape[:2])
    np.testing.assert_array_equal(picture.pixels, upright)
    assert (picture.source_height, picture.source_width) == upright.shape[:2]


def test_grey_palette_alpha_and_16_bit_pictures_become_rgb() -> None:
    grey = rgb()[..., 0]
    expected = np.repeat(grey[..., None], 3, 2)
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 17)
    for image in (Image.fromarray(grey), deep, Image.fromarray(grey).convert("LA")):
        np.testing.assert_array_equal(decode(encode(image, "PNG"), 8, 12).pixels, expected)
    alpha = Image.fromarray(np.dstack([rgb(), np.full((8, 12), 7, np.uint8)]))
    np.testing.assert_array_equal(decode(encode(alpha, "PNG"), 8, 12).pixels, rgb())
    assert decode(encode(Image.fromarray(rgb()).convert("P"), "PNG"), 8, 12).pixels.shape == (8, 12, 3)
    assert decode(encode(Image.fromarray(rgb()).convert("CMYK"), "JPEG"), 8, 12).pixels.shape == (8, 12, 3)


def test_every_truncation_of_a_picture_is_an_error_of_ours_or_a_picture() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encode(Image.fromarray(rgb(40, 40)), kind)
        refused = 0
        for stop in range(0, len(data) - 20, 7):
            try:
                decode(data[:stop], 16, 16)
            except InvalidInputError:
                refused += 1
        assert refused > 5, kind


def test_damaged_pictures_never_raise_anything_else() -> None:
    random = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP"):
        data = np.frombuffer(encode(Image.fromarray(rgb(40, 40)), kind), np.uint8)
        for _ in range(150):
            damaged = data.copy()
            places = random.integers(0, len(data), 4)
            damaged[places] = random.integers(0, 256, 4)
            with contextlib.suppress(InvalidInputError):
                decode(damaged.tobytes(), 16, 16)
