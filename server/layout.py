"""What lies on disk: `<root>/<name>/<version>/model.onnx`, and which of it may be looked at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from analyzers.errors import ModelError
from server.errors import clip

FILE = "model.onnx"
MAX_NAME_BYTES = 128
_VERSION = re.compile("0|[1-9][0-9]{0,17}")  # a positive int64, written in one way only

Signature = tuple[int, int, int]
"""Inode, size and time of change (ns) of a file; if none of them differs it is taken for the same content."""


@dataclass(frozen=True, slots=True)
class Found:
    """One version on disk.

    Attributes:
        version: its number.
        path: of its file.
        signature: of its file, links followed; None where there is no such file.
    """

    version: str
    path: Path
    signature: Signature | None


def is_safe(name: str) -> bool:
    """Whether a name can be a model's: one visible folder, printable, and short enough to be told to anybody."""
    return (
        0 < len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES
        and name.isprintable()
        and not name.startswith((".", " "))
        and not name.endswith(" ")
        and "/" not in name
        and "\\" not in name
    )


def names_on_disk(root: Path) -> list[str]:
    """Return the names of all models, sorted; folders that cannot be one's are left out.

    Raises:
        OSError: the root cannot be read.
    """
    return sorted(path.name for path in root.iterdir() if is_safe(path.name) and path.is_dir())


def strange_names(root: Path) -> list[str]:
    """Return, in ASCII and shortened, the names of folders that are left out and not hidden either."""
    names = [path.name for path in root.iterdir() if path.is_dir()]
    return [clip(ascii(name), 80) for name in names if not is_safe(name) and not name.startswith(".")]


def versions_on_disk(root: Path, name: str) -> list[Found]:
    """Return the versions of a model, newest first; none where there is no such model."""
    try:
        folders = [path for path in (root / name).iterdir() if _VERSION.fullmatch(path.name) and path.is_dir()]
    except OSError:
        return []
    found = [Found(path.name, path / FILE, _signature(path / FILE)) for path in folders]
    return sorted(found, key=lambda one: int(one.version), reverse=True)


def _signature(path: Path) -> Signature | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def within(root: Path, path: Path) -> Path:
    """Return where a path leads to once all links are followed.

    Links are how a ConfigMap or a deployment swaps a version in one step, so they are followed, inside the repository.

    Raises:
        ModelError: it leads out of the repository, in circles, or to nothing.
    """
    try:
        real = path.resolve(strict=True)
        inside = real.is_relative_to(root.resolve(strict=True))
    except FileNotFoundError:
        raise ModelError(f"there is no {path.name}") from None
    except (OSError, RuntimeError):  # a circle of links is the latter before Python 3.13
        raise ModelError(f"{path.name} cannot be reached") from None
    if not inside:
        raise ModelError(f"{path.name} is a link that leads out of the repository; copy the file into it")
    return real
