"""Progress bars on stderr: title, bar, count, time left. Silent where stderr is not a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def track(items: Iterable[T], title: str, total: int, *, shown: bool = True) -> Iterator[T]:
    """Yield `items` while a bar, where it is `shown`, says how many of `total` are done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        yield from progress.track(items, total=total, description=title)
