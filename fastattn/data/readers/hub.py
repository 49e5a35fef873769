"""Rows of data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastattn.data.readers.lines import checked_record
from fastattn.data.readers.record import BadRow, Record
from fastattn.data.readers.sources import split_of


def read_hub_sets(
    name: str, sets: Mapping[str, Any]
) -> Iterator[tuple[str | None, Record | BadRow]]:
    """Yields (split, record) for each row of a ``datasets.DatasetDict``.

    Classes come with their names, which the data set's features hold; -1, the Hub's sign for "no
    label", as None. Splits of other names than train, validation and test have no split.
    """
    for set_name, table in sets.items():
        split = split_of(set_name)
        origin = f"{name}[{set_name}]"
        named = {column: _namer(feature) for column, feature in table.features.items()}
        for number, fields in enumerate(table, start=1):
            row = {
                column: rename(fields[column]) if (rename := named.get(column)) else fields[column]
                for column in fields
            }
            yield split, checked_record(origin, number, row)


def _namer(feature: Any) -> Callable[[Any], Any] | None:
    """A function that turns the classes of a column into their names, None if it has none."""
    names = getattr(feature, "names", None)
    if names is not None:
        return lambda value: None if value is None or value < 0 else names[value]
    inner = getattr(feature, "feature", None)
    if inner is None and isinstance(feature, list) and len(feature) == 1:
        inner = feature[0]
    rename = None if inner is None else _namer(inner)
    if rename is None:
        return None
    return lambda values: None if values is None else [rename(value) for value in values]
