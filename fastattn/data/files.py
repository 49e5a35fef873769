"""Reads a table of texts and labels from a file: CSV, TSV, JSON Lines or Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fastattn.errors import DataError

DEFAULT_TEXT_COLUMN = "text"
DEFAULT_LABEL_COLUMN = "label"


class Rows(NamedTuple):
    """Texts and labels as they are in the source; None where a cell is empty."""

    texts: list[str | None]
    labels: list[Any]
    origin: str  # the file or split they come from, for messages


def read_file(path: Path, text_column: str | None, label_column: str | None) -> Rows:
    """Returns the two columns of a file.

    Raises:
        DataError: it cannot be read, is not UTF-8, has no rows or lacks a column.
    """
    if not path.is_file():
        raise DataError(
            f"data: data must be a file that exists; got {str(path)!r}. Check the path, or leave "
            "--data out to use the packaged IMDB reviews."
        )
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"data: data must be a {', '.join(READERS)} file; got {path.name!r}. "
            "Convert it to one of these, with one text and one label a row."
        )
    try:
        columns = reader(path)
    except UnicodeDecodeError as error:
        raise DataError(
            f"data: {path.name} must be UTF-8 text; got byte 0x{error.object[error.start]:02x} at "
            f"position {error.start}. Save it as UTF-8, for example with "
            f"`iconv -f ISO-8859-1 -t UTF-8 {path.name}` if it is Latin-1."
        ) from error
    except OSError as error:
        raise DataError(
            f"data: {path.name} must be readable; got {error.strerror or error}. "
            "Check its permissions."
        ) from error
    return select_columns(columns, text_column, label_column, path.name)


def select_columns(
    columns: dict[str, list[Any]],
    text_column: str | None,
    label_column: str | None,
    origin: str,
) -> Rows:
    """Picks the text and the label column of a table.

    Raises:
        DataError: a column is not there, there are no rows, or the texts are not text.
    """
    text_name = text_column or DEFAULT_TEXT_COLUMN
    label_name = label_column or DEFAULT_LABEL_COLUMN
    for argument, name in (("text_column", text_name), ("label_column", label_name)):
        if name not in columns:
            raise DataError(
                f"data: {argument} must name a column of {origin}; got {name!r}. Its columns are: "
                f"{', '.join(map(str, columns)) or '(none)'}. "
                f"Use --{argument.replace('_', '-')} to name one of them."
            )
    texts = [_text(value, text_name, origin) for value in columns[text_name]]
    if not texts:
        raise DataError(
            f"data: {origin} must have at least one row below its header; got none. "
            "Check that it is the right file."
        )
    return Rows(texts, columns[label_name], origin)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, or a string of spaces."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value  # NaN alone differs from itself


def _text(value: Any, column: str, origin: str) -> str | None:
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise DataError(
            f"data: text_column must name a column of texts; got {column!r} of {origin}, which "
            f"holds {value!r}. Use --text-column to name the column with the texts."
        )
    return value


def _read_separated(path: Path, separator: str) -> dict[str, list[Any]]:
    import pandas as pd

    try:
        # Everything as text and no special words: a review may well be "NA" or "null".
        table = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except pd.errors.EmptyDataError:
        return {}
    except pd.errors.ParserError as error:
        raise DataError(
            f"data: {path.name} must be a table with the same number of cells in each row; got "
            f"{str(error).strip()}. Quote the texts that hold a separator, a quote or a line break."
        ) from error
    return {str(name): table[name].tolist() for name in table.columns}


def _read_json_lines(path: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    rows = 0
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"data: each line of {path.name} must be JSON; got {error} in line {number}. "
                    "Correct that line."
                ) from error
            if not isinstance(record, dict):
                raise DataError(
                    f"data: each line of {path.name} must be a JSON object; got "
                    f"{type(record).__name__} in line {number}. Write it as "
                    '{"text": ..., "label": ...}.'
                )
            for name in record.keys() - columns.keys():
                columns[name] = [None] * rows
            for name, values in columns.items():
                values.append(record.get(name))
            rows += 1
    return columns


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(
            f"data: {path.name} must be a Parquet file; got one that is not ({error}). "
            "Check that it is whole."
        ) from error
    return {name: table.column(name).to_pylist() for name in table.column_names}


READERS: dict[str, Callable[[Path], dict[str, list[Any]]]] = {
    ".csv": lambda path: _read_separated(path, ","),
    ".tsv": lambda path: _read_separated(path, "\t"),
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}
