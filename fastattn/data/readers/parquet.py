"""Rows of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fastattn.data.readers.lines import checked_record
from fastattn.data.readers.record import (
    NOTHING_REQUIRED,
    BadRow,
    ReadOptions,
    Record,
    check_columns,
    check_different,
)
from fastattn.errors import DataError

_BATCH = 1024  # rows decoded at once


def read_parquet(
    path: Path, name: str, options: ReadOptions, required: Mapping[str, str] = NOTHING_REQUIRED
) -> Iterator[Record | BadRow]:
    """Yields the rows.

    Raises:
        DataError: it is no Parquet file, lacks a column of ``required``, or has one twice.
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"data: pyarrow must be installed to read {name}; got none. "
            "Run `pip install 'fastattn[data]'`."
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            check_different(name, columns, "Write the file again with a name for each column.")
            check_columns(name, columns, required)
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH):
                for fields in batch.to_pylist():
                    number += 1
                    yield checked_record(name, number, fields)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data: {name} must be a Parquet file; got one that is not ({error}). "
            "Check that it is whole."
        ) from error
