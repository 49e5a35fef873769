"""What every reader yields: rows that know where they come from, and rows that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastattn.errors import DataError


class Record(NamedTuple):
    """One row of a source, as it is there."""

    file: str  # for messages: the file as it was named, or its path inside the folder
    row: int  # the line it starts on; in Parquet, JSON and Hub data sets its number, from 1
    fields: dict[str, Any]


# Of the columns of a table; see check_columns.
NOTHING_REQUIRED: Mapping[str, str] = {}


class BadRow(NamedTuple):
    """A row that cannot be read, why, and what to do."""

    file: str
    row: int
    problem: str  # "<what> must <rule>; got <value>"
    remedy: str
    content: Any  # all of the row that there is, so that nothing is lost

    def error(self) -> DataError:
        """Returns the exception that says so."""
        return row_error(self.file, self.row, self.problem, self.remedy)


@dataclass(frozen=True)
class ReadOptions:
    """How files are to be read.

    Args:
        encoding: of text files. "utf-8" takes files with and without a byte order mark.
        delimiter: between the cells of CSV and TSV files. Default: a comma, a tab.
        quotes: whether a cell of CSV and TSV files may be in double quotes.
        token_column, tag_column: of CoNLL files, counted from 0; negative ones from the end.
        whole_files: whether a text file is one text, or each of its lines is.
    """

    encoding: str = "utf-8"
    delimiter: str | None = None
    quotes: bool = True
    token_column: int = 0
    tag_column: int = -1
    whole_files: bool = False


def row_error(file: str, row: int, problem: str, remedy: str) -> DataError:
    """Returns an exception that names the file and the row."""
    return DataError(f"data: {file}, row {row:,}: {problem}. {remedy}")


def strict(rows: Iterable[Record | BadRow]) -> Iterator[Record]:
    """Yields the rows; raises the DataError of the first that cannot be read."""
    for row in rows:
        if isinstance(row, BadRow):
            raise row.error()
        yield row


def check_columns(
    name: str, columns: Sequence[str], required: Mapping[str, str], hint: str | None = None
) -> None:
    """Raises a DataError unless a table has the columns that are required.

    Args:
        name: of the file, for the message.
        required: columns, and the option that names another one in each one's place. ``a.b`` is
            there if ``a`` is, which may hold objects.
        hint: what to do if there is something likelier than a column of another name.
    """
    for column, option in required.items():
        if column not in columns and column.partition(".")[0] not in columns:
            there = ", ".join(filter(None, columns)) or "(none)"
            advice = hint or f"Its columns are: {there}. Name the one that is meant with {option}."
            raise DataError(f"data: {name} must have a column {column!r}; got none. {advice}")


def check_different(name: str, columns: Sequence[str], hint: str) -> None:
    """Raises a DataError if two columns of a table have one name, of which one would be lost.

    Args:
        name: of the file, for the message.
        hint: what to do.
    """
    twice = [column for column in columns if column and columns.count(column) > 1]
    if twice:
        raise DataError(
            f"data: the columns of {name} must have different names; got {twice[0]!r} "
            f"{columns.count(twice[0])} times. {hint}"
        )


def shorten(value: Any, length: int = 80) -> str:
    """Returns a value for a message: quoted, and not longer than a line."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 4]}...{text[-1]}"
