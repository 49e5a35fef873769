"""Rows of CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fastattn.data.readers.lines import byte_problem, decoded_lines, printable
from fastattn.data.readers.record import (
    NOTHING_REQUIRED,
    BadRow,
    ReadOptions,
    Record,
    check_columns,
    check_different,
)
from fastattn.errors import DataError

# What people type where a shell has no tab.
_TABS = ("\\t", "tab")
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
# Longer cells are taken for a quote that is not closed.
LONGEST_CELL = 16 * 2**20


def read_table(
    path: Path, name: str, options: ReadOptions, required: Mapping[str, str] = NOTHING_REQUIRED
) -> Iterator[Record | BadRow]:
    """Yields the rows of a table whose first row names its columns. Blank lines are no rows.

    Args:
        required: columns that must be there, see :func:`check_columns`.

    Raises:
        DataError: there is no header, it names a column twice or lacks one, or a quote is
            not closed.
    """
    delimiter = options.delimiter
    if delimiter is None:
        delimiter = _DELIMITERS[path.suffix.lower()]
    delimiter = "\t" if delimiter in _TABS else delimiter
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise DataError(
            "data: delimiter must be one character, and neither a quote nor a line end; got "
            f"{delimiter!r}. Use --delimiter."
        )
    rows = _Rows(path, name, options, delimiter)
    header = rows.header()
    _check_header(header, name, delimiter, required)
    for start, cells in rows:
        if isinstance(cells, BadRow):
            yield cells
        elif len(cells) != len(header):
            yield BadRow(
                name,
                start,
                f"a row must have {len(header)} cells, as the header has; got {len(cells)}",
                "Quote the texts that hold a delimiter, a quote or a line break, or name another "
                "delimiter with `fastattn data build --delimiter`.",
                rows.content(),
            )
        else:
            problem = byte_problem("".join(cells), options.encoding)
            if problem:
                yield BadRow(name, start, *problem, rows.content())
            else:
                named = zip(header, cells, strict=True)
                yield Record(name, start, {column: cell for column, cell in named if column})


class _Rows:
    """The rows of a file with the lines they start on, and the lines of the row at hand."""

    def __init__(self, path: Path, name: str, options: ReadOptions, delimiter: str) -> None:
        self._name = name
        self._encoding = options.encoding
        self._lines: list[str] = []
        self._source = decoded_lines(path, name, options.encoding)
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
        self._reader = csv.reader(
            self._recorded(),
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if options.quotes else csv.QUOTE_NONE,
            strict=True,
        )

    def _recorded(self) -> Iterator[str]:
        for line in self._source:
            self._lines.append(line)
            yield line

    def content(self) -> str:
        """Returns the lines of the row at hand as they are in the file."""
        return printable("".join(self._lines).rstrip("\r\n"))

    def header(self) -> list[str]:
        for _, cells in self:
            if isinstance(cells, BadRow):
                raise cells.error()
            problem = byte_problem("".join(cells), self._encoding)
            if problem:
                raise BadRow(self._name, 1, *problem, None).error()
            return [cell.strip() for cell in cells]
        raise DataError(
            f"data: {self._name} must begin with a row of column names; got an empty file. "
            "Check that it is the right file."
        )

    def __iter__(self) -> Iterator[tuple[int, list[str] | BadRow]]:
        while True:
            self._lines.clear()
            start = self._reader.line_num + 1
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield start, self._bad_row(start, str(error))
                continue
            if cells:
                yield start, cells

    def _bad_row(self, start: int, error: str) -> BadRow:
        # After these two nothing that follows can be told from the cell.
        if "unexpected end of data" in error or "field larger than field limit" in error:
            raise DataError(
                f"data: {self._name}, row {start:,}: a cell must end with a quote if it begins "
                f"with one, and have at most {LONGEST_CELL >> 20} Mi characters; got no quote up "
                f"to row {self._reader.line_num:,}. Close the quote, or, if quotes mean nothing in "
                "this file, read it with `fastattn data build --no-quotes`."
            )
        if "new-line character" in error:
            return BadRow(
                self._name,
                start,
                "a line must end with a line feed; got a carriage return alone in it",
                "Save the file with the line ends of today's editors, or quote the texts that "
                "hold line breaks.",
                self.content(),
            )
        return BadRow(
            self._name,
            start,
            f"a row must be made of whole cells; got {error}",
            "Double the quotes inside a quoted text, or, if quotes mean nothing in this file, read "
            "it with `fastattn data build --no-quotes`.",
            self.content(),
        )


def _check_header(
    header: Sequence[str], name: str, delimiter: str, required: Mapping[str, str]
) -> None:
    check_different(name, header, "Rename all but one of them in its first row.")
    other = [x for x in (",", "\t", ";", "|") if x != delimiter and x in header[0]]
    hint = (
        f"The first row seems to be separated by {other[0]!r}: name it with `fastattn data build "
        f"--delimiter`, or save the file with {delimiter!r}."
        if len(header) == 1 and other
        else None
    )
    check_columns(name, header, required, hint)
