"""``fastattn check``."""

from __future__ import annotations

import time

from rich.console import Console

from fastattn import selfcheck

_MARKS = {True: "[green]ok  [/]", False: "[red]FAIL[/]", None: "[yellow]skip[/]"}


def run() -> bool:
    """Runs every check and prints its result; returns whether none failed."""
    console = Console(highlight=False, soft_wrap=True)
    started = time.perf_counter()
    counts = {True: 0, False: 0, None: 0}
    for result in selfcheck.run():
        counts[result.passed] += 1
        console.print(_MARKS[result.passed], end=" ")
        console.print(f"{result.name}: {result.detail}", markup=False)
    seconds = time.perf_counter() - started
    console.print(
        f"{counts[True]} passed, {counts[False]} failed, {counts[None]} skipped in {seconds:.1f} s"
    )
    return counts[False] == 0
