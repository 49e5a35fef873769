"""The classes of a data set, from the labels of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from fastattn.data.tasks import label_names
from fastattn.errors import DataError

# Of fewer rows than these, every one may well have a class of its own.
_FEW_ROWS = 20


def class_names(labels: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """Returns the names of the classes that some rows have, in their order.

    Args:
        labels: of all rows.
        known: names of the classes in the source's own order, if it has one. Default: in the order
            of their numbers, or in alphabetical order.

    Raises:
        DataError: there is one class only, or the column seems to hold something else than classes.
    """
    there = set(labels)
    names = [name for name in known if name in there]
    names += label_names(there - {*names})
    if len(names) < 2:
        raise DataError(
            f"data: label_column must hold at least two classes; got only {names[0]!r}, in "
            f"{len(labels):,} rows. Add rows of another class, or use --label-column."
        )
    if len(labels) > _FEW_ROWS and len(names) > len(labels) // 2:
        raise DataError(
            f"data: label_column must hold classes; got {len(names):,} different values in "
            f"{len(labels):,} rows. Use --label-column to name the column with the classes."
        )
    return names


def alike_labels(names: Iterable[str]) -> list[list[str]]:
    """Returns groups of names that differ by letter case and blanks alone."""
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(" ".join(name.casefold().split()), []).append(name)
    return [names for names in folded.values() if len(names) > 1]


def joined_labels(names: Sequence[str], separator: str) -> str | None:
    """Returns a name that seems to be several labels with a mark between them, None if none does.

    Args:
        separator: the mark that has been taken for one.
    """
    for mark in ";,|/".replace(separator, ""):
        parts = Counter(part.strip() for name in names for part in {*name.split(mark)})
        for name in names:
            if mark in name and any(parts[part.strip()] > 1 for part in name.split(mark)):
                return name
    return None
