"""From the name of a data set to train, validation and test sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fastattn.data import labels, sources
from fastattn.data.clean import Row, deduplicate, replace_breaks
from fastattn.data.files import Rows
from fastattn.data.splits import (
    Size,
    Sizes,
    Texts,
    check_sizes,
    make_splits,
    remove_shared,
)


class Splits(NamedTuple):
    """The sets of one data set.

    ``report`` holds what was read and what was dropped and why, as plain values for JSON.
    """

    train: Texts
    validation: Texts
    test: Texts
    label_names: list[str]
    report: dict[str, Any]


def load(
    data: str = sources.PACKAGED_IMDB,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    train_size: Size | None = None,
    validation_size: Size | None = None,
    test_size: Size | None = None,
    split_seed: int = 0,
) -> Splits:
    """Reads a data set, drops duplicates, and splits it (:mod:`fastattn.data.splits`).

    Args:
        data, text_column, label_column: see :func:`fastattn.data.sources.read`.
        train_size: number of rows, "all", or None: all that are left.
        validation_size: number of rows, "all", or None: the source's own validation set, or a
            tenth of the training rows, at most 5,000.
        test_size: the same for the test set.
        split_seed: another number, another split.

    Raises:
        DataError: the data cannot be used; the message says why and what to do.
    """
    sizes = Sizes(train_size, validation_size, test_size)
    check_sizes(sizes)
    source = sources.read(data, text_column, label_column)
    given = {"train": source.train, "validation": source.validation, "test": source.test}
    parts = {name: rows for name, rows in given.items() if rows is not None}
    encoded, label_names = labels.encode(list(parts.values()), source.label_names)
    report: dict[str, Any] = {"source": source.name, "notes": list(source.notes)}
    kept: dict[str, list[Row]] = {}
    for (name, rows), classes in zip(parts.items(), encoded, strict=True):
        texts = _texts(rows, source.has_line_breaks)
        result = deduplicate(texts, classes)
        kept[name] = result.rows
        report[f"{name}_rows"] = {
            "read": len(texts),
            "empty": result.empty,
            "duplicates": result.duplicates,
            "conflicting_labels": result.conflicts,
        }
    leaks = remove_shared(kept)
    for name, count in leaks.items():
        report[f"{name}_rows"]["also_held_out"] = count
    chosen = make_splits(kept["train"], kept.get("validation"), kept.get("test"), sizes, split_seed)
    train, validation, test = (_as_texts(rows) for rows in chosen)
    report["split_seed"] = split_seed
    report["line_breaks_replaced"] = source.has_line_breaks
    report["sizes"] = {
        name: len(part.texts)
        for name, part in (("train", train), ("validation", validation), ("test", test))
    }
    return Splits(train, validation, test, label_names, report)


def _texts(rows: Rows, has_line_breaks: bool) -> list[str]:
    texts = [text or "" for text in rows.texts]
    return [replace_breaks(text) for text in texts] if has_line_breaks else texts


def _as_texts(rows: Sequence[Row]) -> Texts:
    return Texts([row.text for row in rows], [row.label for row in rows])
