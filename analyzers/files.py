"""Read JSON files, and write files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from analyzers.errors import DataError


def read_json(path: Path, expected: str) -> object:
    """Read a JSON file; `expected` says in a few words what should be in it.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not JSON; expected {expected}") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary file beside it, so that a reader sees the old file or the new one.

    Raises:
        OSError: the folder cannot be made, or the disk is full; `path` is untouched then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
