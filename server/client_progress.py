"""A bar on stderr for many pictures; optional, as `rich` is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

Progress = Literal["auto"] | bool


@contextmanager
def progress_bar(progress: Progress, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr and yield what moves it by one picture; does nothing without `rich`.

    Args:
        progress: whether to show it; "auto" where stderr is a terminal.
        total: how many pictures there are; None if that is not known.
    """
    bar = _rich_bar(progress) if progress else None
    if bar is None:
        yield lambda: None
        return
    with bar:
        task = bar.add_task("explaining", total=total)
        yield lambda: bar.advance(task)


def _rich_bar(progress: Progress) -> RichProgress | None:
    try:
        from rich import progress as rich_progress  # optional: a client needs no terminal
        from rich.console import Console
    except ImportError:
        return None
    console = Console(stderr=True)
    if progress == "auto" and not console.is_terminal:
        return None
    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TaskProgressColumn("", show_speed=True),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
        console=console,
        redirect_stdout=False,  # what a program prints is its own, and may be on its way into a file
        redirect_stderr=False,
    )
