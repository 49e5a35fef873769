"""Readers that yield rows one by one, each with its file and row.

    from fastattn.data.readers import read_rows

    for record in read_rows("train.conll", task="token-classification"):
        record.file, record.row, record.fields    # fields: {"tokens": [...], "tags": [...]}

``read_rows`` yields rows as they are in the file; :mod:`fastattn.data.tasks` turns them into the
rows of a task and says what is wrong with them. Memory does not grow with the number of rows,
except for ``.json`` documents, which have no rows that could be read one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from fastattn.data.readers.conll import read_conll
from fastattn.data.readers.json_files import read_json, read_json_lines
from fastattn.data.readers.lines import read_lines
from fastattn.data.readers.parquet import read_parquet
from fastattn.data.readers.record import (
    NOTHING_REQUIRED,
    BadRow,
    ReadOptions,
    Record,
    row_error,
    strict,
)
from fastattn.data.readers.sources import (
    JSON_LINES,
    TABLES,
    SourceFile,
    find_files,
    split_of,
)
from fastattn.data.readers.tables import read_table
from fastattn.errors import DataError

__all__ = [
    "DEFAULT_OPTIONS",
    "BadRow",
    "ReadOptions",
    "Record",
    "SourceFile",
    "find_files",
    "read_any_rows",
    "read_rows",
    "row_error",
    "split_of",
    "strict",
]

DEFAULT_OPTIONS = ReadOptions()


def read_rows(
    source: str | Path,
    task: str = "classification",
    options: ReadOptions = DEFAULT_OPTIONS,
    required: Mapping[str, str] = NOTHING_REQUIRED,
) -> Iterator[Record]:
    """Yields the rows of a file or folder (:func:`find_files`), all of its splits.

    Raises:
        DataError: at the first row that cannot be read; the message has its file and row.
    """
    for file in find_files(source):
        yield from strict(read_any_rows(file, task, options, required))


def read_any_rows(
    file: SourceFile,
    task: str = "classification",
    options: ReadOptions = DEFAULT_OPTIONS,
    required: Mapping[str, str] = NOTHING_REQUIRED,
) -> Iterator[Record | BadRow]:
    """Yields the rows of one file; those that cannot be read as :class:`BadRow`.

    Args:
        task: "token-classification" reads ``.txt`` files as CoNLL; the others as lines of text.
        required: columns that a table must have, and the option that names each of them.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    suffix = file.path.suffix.lower()
    try:
        if suffix in TABLES:
            yield from read_table(file.path, file.name, options, required)
        elif suffix in JSON_LINES:
            yield from read_json_lines(file.path, file.name, options)
        elif suffix == ".json":
            yield from read_json(file.path, file.name, options)
        elif suffix == ".parquet":
            yield from read_parquet(file.path, file.name, options, required)
        elif suffix != ".txt" or (task == "token-classification" and not file.whole_file):
            yield from read_conll(file.path, file.name, options)
        else:
            yield from _read_text(file, options)
    except OSError as error:
        raise DataError(
            f"data: {file.name} must be readable; got {error.strerror or error}. "
            "Check its permissions."
        ) from error


def _read_text(file: SourceFile, options: ReadOptions) -> Iterator[Record | BadRow]:
    whole = file.whole_file or options.whole_files
    for row in read_lines(file.path, file.name, replace(options, whole_files=whole)):
        if isinstance(row, Record) and file.label is not None:
            row.fields["label"] = file.label
        yield row
