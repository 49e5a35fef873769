"""What a measurement prints."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from fastattn.bench import tables

_WIDTH = 200


def say(line: str) -> None:
    """Says on stderr what is being measured."""
    Console(stderr=True, highlight=False).print(f"{line} ...", markup=False)


def show(result: dict[str, Any]) -> None:
    """Prints the tables of a result."""
    console = _console()
    found, notes = tables.shown(result)
    for table in found:
        if table.rows:
            console.print(_rich(table))
    for line in [*notes, tables.provenance(result)]:
        console.print(line, markup=False)


def show_table(table: tables.Table) -> None:
    """Prints one table."""
    _console().print(_rich(table))


def _console() -> Console:
    # A table is never cut: in a narrow terminal, the terminal wraps it.
    return Console(highlight=False, soft_wrap=True, width=_WIDTH)


def _rich(table: tables.Table) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(table.header):
        right = index >= table.num_words
        shown.add_column(name, justify="right" if right else "left", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    return shown
