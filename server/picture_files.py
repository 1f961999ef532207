"""Which picture files a command line names: files, folders of them, patterns."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from analyzers.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def find_pictures(names: Sequence[str]) -> list[Path]:
    """Return the files that are named, in the order of the names, and by path within a folder or a pattern.

    A folder stands for the pictures anywhere below it, hidden ones left out; a pattern for what it matches. Whatever is
    neither is taken as a file, even if there is none: asking about it says so.

    Raises:
        DataError: a folder has no picture, or a pattern matches nothing.
    """
    return [path for name in names for path in _named(name)]


def _named(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        return _below(path)
    if path.exists() or not glob.has_magic(name):
        return [path]
    found = sorted(filter(_is_picture, map(Path, glob.glob(name, recursive=True))))  # noqa: PTH207 (the pattern may be absolute)
    if not found:
        raise DataError(f"no picture matches '{name}'; expected files that end in {', '.join(SUFFIXES)}")
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _below(folder: Path) -> list[Path]:
    shown = (path for path in folder.rglob("*") if not any(p.startswith(".") for p in path.relative_to(folder).parts))
    found = sorted(filter(_is_picture, shown))
    if not found:
        raise DataError(f"{folder} has no pictures in it; expected files that end in {', '.join(SUFFIXES)}")
    return found
