"""A progress bar for each stage of a build."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Shows bars on the terminal (standard error), or nothing."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Yields a function to call with the number of rows that are done.

        Args:
            total: rows there are; None if nobody knows.
        """
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        if not self._shown or not console.is_terminal:
            yield lambda rows: None
            return
        columns = (
            progress.TextColumn("{task.description:12}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
        )
        # A bar that is redrawn for each row takes longer than the row.
        with progress.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(name, total=total)
            waiting = 0

            def advance(rows: int) -> None:
                nonlocal waiting
                waiting += rows
                if waiting >= 1000:
                    bar.advance(task, waiting)
                    waiting = 0

            yield advance
            bar.advance(task, waiting)
