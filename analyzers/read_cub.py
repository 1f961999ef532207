"""CUB-200-2011, as its archive unpacks: 200 kinds of birds, one box and 15 marked points in each photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from analyzers.errors import DataError
from analyzers.pictures import Float32Array, Pictures
from analyzers.read_objects import Listing, MarkedObject, ReadOptions, to_pictures
from analyzers.read_splits import TEST, TRAIN

INDEX_FILES = (
    "images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt",
    "parts/parts.txt", "parts/part_locs.txt",
)  # fmt: skip

Float64Array = npt.NDArray[np.float64]


def is_cub(root: Path) -> bool:
    """Tell whether a folder looks like CUB-200-2011."""
    return (root / "images.txt").is_file() and (root / "parts" / "part_locs.txt").is_file()


def read_cub(root: Path, options: ReadOptions | None = None) -> Pictures:
    """Read the data set with its own split; its marks are points, so their boxes are NaN.

    Args:
        root: the folder with `images.txt`, `images/` and `parts/`.
        options: crops and the like.

    Raises:
        DataError: an index file is missing or damaged, photographs cannot be read, or a class has no picture.
    """
    missing = [name for name in INDEX_FILES if not (root / name).is_file()]
    if missing:
        raise DataError(f"{root} lacks {', '.join(missing)}; CUB-200-2011 has {', '.join(INDEX_FILES)} and images/")
    images = _names(root, "images.txt")
    classes = _names(root, "classes.txt")
    parts = _names(root, "parts/parts.txt")
    label = _by_image(root, "image_class_labels.txt", 1, images)[:, 0].astype(int)
    training = _by_image(root, "train_test_split.txt", 1, images)[:, 0]
    box = _by_image(root, "bounding_boxes.txt", 4, images)
    xy = _part_points(root, images, parts)
    classes_in_order = list(classes)
    strange = set(label.tolist()) - set(classes)
    if strange:
        raise DataError(f"{root / 'image_class_labels.txt'} has class {min(strange)}, which classes.txt does not have")
    objects = [
        MarkedObject(
            file=root / "images" / name,
            label=classes_in_order.index(label[row]),
            box=(x, y, x + width, y + height),
            xy=xy[row],
            part_box=np.full((len(parts), 4), np.nan, np.float32),
            split=TRAIN if training[row] else TEST,
        )
        for row, (name, (x, y, width, height)) in enumerate(zip(images.values(), box.tolist(), strict=True))
    ]
    listing = Listing("CUB-200-2011", root, tuple(classes.values()), tuple(parts.values()), objects)
    return to_pictures(listing, options or ReadOptions())


def _part_points(root: Path, images: dict[int, str], parts: dict[int, str]) -> Float32Array:
    """Return (images, parts, 2) points (x, y) in pixels; NaN where a part is not visible."""
    image_row = {number: row for row, number in enumerate(images)}
    part_row = {number: row for row, number in enumerate(parts)}
    xy = np.full((len(images), len(parts), 2), np.nan, np.float32)
    for image, part, x, y, visible in _numbers(root, "parts/part_locs.txt", 5).tolist():
        if image not in image_row or part not in part_row:
            raise DataError(
                f"{root / 'parts/part_locs.txt'} has image {image:.0f}, part {part:.0f},"
                " which images.txt or parts.txt does not have"
            )
        if visible:
            xy[image_row[image], part_row[part]] = x, y
    return xy


def _by_image(root: Path, name: str, columns: int, images: dict[int, str]) -> Float64Array:
    """Return a table's columns behind the image's number, in the order of `images`."""
    table = {row[0]: row[1:] for row in _numbers(root, name, columns + 1)}
    lost = [number for number in images if number not in table]
    if lost:
        raise DataError(f"{root / name} has no line for image {lost[0]} ({images[lost[0]]})")
    return np.array([table[number] for number in images], np.float64).reshape(-1, columns)


def _names(root: Path, name: str) -> dict[int, str]:
    """Read lines `<number> <name>`, sorted by number; names may hold spaces."""
    try:
        pairs = [line.split(maxsplit=1) for line in _lines(root / name)]
        return dict(sorted((int(number), text.strip()) for number, text in pairs))
    except ValueError:
        raise DataError(f"{root / name} is damaged; expected lines '<number> <name>'") from None


def _numbers(root: Path, name: str, columns: int) -> Float64Array:
    try:
        return np.array([line.split() for line in _lines(root / name)], np.float64).reshape(-1, columns)
    except ValueError:
        raise DataError(f"{root / name} is damaged; expected {columns} numbers a line") from None


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
