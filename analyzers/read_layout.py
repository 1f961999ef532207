"""Which data set a folder holds, told by its index files."""

from __future__ import annotations

from pathlib import Path

from analyzers.pictures import Pictures
from analyzers.read_animal_part import is_animal_part, read_animal_part
from analyzers.read_cub import is_cub, read_cub
from analyzers.read_objects import ReadOptions
from analyzers.read_voc_part import is_voc_part, read_voc_part


def read_layout(root: Path, options: ReadOptions | None = None) -> Pictures | None:
    """Read a data set as it was downloaded, or return None where the folder is none that is known here.

    Raises:
        DataError: it is one, but something in it is missing or damaged.
    """
    if is_cub(root):
        return read_cub(root, options)
    if is_voc_part(root):
        return read_voc_part(root, options)
    if is_animal_part(root):
        return read_animal_part(root, options)
    return None
