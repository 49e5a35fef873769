"""Turns the labels of a source, numbers or names, into classes 0, 1, 2, ..."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastattn.data.files import Rows, is_missing
from fastattn.errors import DataError


def encode(parts: Sequence[Rows], names: Sequence[str] | None) -> tuple[list[list[int]], list[str]]:
    """Returns the classes of each part, and the names of the classes.

    Args:
        parts: the rows of each split of one source.
        names: names of the classes if the source has them; its labels are then indices into it.

    Labels are whole numbers (also written as text, as in a CSV file) or strings. Classes are in
    ascending order of the numbers, or in alphabetical order.

    Raises:
        DataError: a label is missing or no class, there is one class only, or the column seems to
            hold something else than classes.
    """
    columns = [[_value(label, rows, n) for n, label in enumerate(rows.labels)] for rows in parts]
    every = [label for column in columns for label in column]
    whole = [_whole_number(label) for label in every]
    if all(number is not None for number in whole):
        columns = [[_whole_number(label) for label in column] for column in columns]
        every = list(whole)
    elif any(isinstance(label, float) for label in every):
        bad = next(label for label in every if _whole_number(label) is None)
        raise DataError(
            f"data: label_column must hold classes, whole numbers or strings; got {bad!r}. "
            "Use --label-column to name the column with the classes."
        )
    else:
        columns = [[str(label) for label in column] for column in columns]
        every = [str(label) for label in every]
    classes = sorted(set(every))
    _check_classes(classes, len(every))
    index = {value: position for position, value in enumerate(classes)}
    encoded = [[index[label] for label in column] for column in columns]
    if names is not None:
        return encoded, [names[value] for value in classes]
    return encoded, [str(value) for value in classes]


def _value(label: Any, rows: Rows, number: int) -> Any:
    if is_missing(label):
        raise DataError(
            f"data: every row must have a label; got none in row {number + 1} of {rows.origin}. "
            "Add it or remove the row, or name another column with --label-column."
        )
    if isinstance(label, bool):
        return str(label)
    if isinstance(label, str):
        return label.strip()
    if not isinstance(label, (int, float)):
        raise DataError(
            "data: label_column must hold one class a row, a whole number or a string; got "
            f"{label!r} in row {number + 1} of {rows.origin}. Use --label-column to name another."
        )
    return label


def _whole_number(label: Any) -> int | None:
    """The number a label stands for: 1, "1", 1.0 and "1.0" are the same class."""
    try:
        number = float(label)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _check_classes(classes: list[Any], num_rows: int) -> None:
    if len(classes) < 2:
        raise DataError(
            f"data: label_column must hold at least two classes; got only {classes[0]!r}, in "
            f"{num_rows:,} rows. Add rows of another class, or use --label-column."
        )
    if num_rows > 20 and len(classes) > num_rows // 2:
        raise DataError(
            f"data: label_column must hold classes; got {len(classes):,} different values in "
            f"{num_rows:,} rows. Use --label-column to name the column with the classes."
        )
