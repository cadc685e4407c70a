"""Progress bars on the terminal, with the time that is left; nothing is drawn where no one looks."""

from __future__ import annotations

__all__ = ["changing_bar", "progress_bar"]

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(label: str, total: int, *, speed_memory: float = 30.0) -> Iterator[Callable[..., None]]:
    """Yields what moves a bar: called with how much is done and, if that is known late, of how much."""
    with changing_bar(label, speed_memory=speed_memory) as move:
        move(label, 0, total)
        yield lambda done, size=total: move(label, done, size)


@contextlib.contextmanager
def changing_bar(label: str = "", *, speed_memory: float = 30.0) -> Iterator[Callable[[str, int, int], None]]:
    """Yields what moves a bar whose label and length may change; nothing is drawn where no one looks.

    The time left is judged by the last `speed_memory` seconds: longer than a few steps take, or none is shown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=speed_memory,
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)
