"""What the command-line programs share: one sentence for an error, an exit code that says so, a clean Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from analyzers.errors import DataError, ModelError, PellucidError

INTERRUPTED = 130


def run(program: str, body: Callable[[], None], *, interrupted: str = "no file was left half-written") -> int:
    """Run a program's body and return its exit code: 0, 1 after an error of ours or of the disk, 130 after Ctrl-C.

    Args:
        program: its name, for the error's sentence.
        body: what it does.
        interrupted: what to say after Ctrl-C.
    """
    try:
        body()
    except (PellucidError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; {interrupted}", file=sys.stderr)
        return INTERRUPTED
    return 0


def triple(text: str) -> tuple[float, float, float]:
    """Parse `R,G,B`."""
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not three numbers R,G,B") from None
    return red, green, blue


def pair(text: str) -> tuple[int, int]:
    """Parse `HEIGHT,WIDTH`."""
    try:
        height, width = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not two numbers HEIGHT,WIDTH") from None
    return height, width


def interval(text: str) -> tuple[float, float]:
    """Parse `LOW,HIGH`."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not two numbers LOW,HIGH") from None
    return low, high


def counts(text: str) -> tuple[int, ...]:
    """Parse `N,N,...`, each 1 or more."""
    try:
        numbers = tuple(map(int, text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not whole numbers N,N,... from 1 on")
    return numbers


def read_names(path: Path) -> tuple[str, ...]:
    """Read class names, one a line.

    Raises:
        DataError: the file is not text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; expected class names, one a line") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def read_model(path: Path) -> bytes:
    """Read a model file.

    Raises:
        ModelError: it is not there, or the disk refuses.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def add_unreadable(command: argparse.ArgumentParser) -> None:
    """Let a command say what is to be done about pictures that cannot be read."""
    command.add_argument(
        "--unreadable",
        choices=("refuse", "skip"),
        default="refuse",
        help="what to do about pictures that cannot be read (default refuse)",
    )
