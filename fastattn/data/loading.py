"""From the name of a data set to train, validation and test sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastattn.data import built, labels, sources
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
from fastattn.errors import DataError


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

    The splits of a folder that ``fastattn data build`` made (:mod:`fastattn.data.built`) are taken
    exactly as they are; a size takes the first rows of one, which are in random order.

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
    if built.is_built(Path(data).expanduser()):
        return _load_built(data, text_column or label_column, sizes, split_seed)
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


def _load_built(folder: str, column: str | None, sizes: Sizes, split_seed: int) -> Splits:
    description = built.read_description(folder)
    if description["task"] != "classification":
        raise DataError(
            f"data: a data set for classification must be given; got {folder!r}, which was built "
            f"for {description['task']}. Build it with --task classification."
        )
    if column is not None:
        raise DataError(
            "data: text_column and label_column must be left out for a built data set; got "
            f"{column!r}. Its columns are text and label."
        )
    names: list[str] = description["label_names"]
    index = {name: number for number, name in enumerate(names)}
    report: dict[str, Any] = {"source": folder, "notes": ["splits as they were built"]}
    parts = {}
    for name, size in zip(Sizes._fields, sizes, strict=True):
        rows = _built_rows(folder, description, name, size)
        report[f"{name}_rows"] = {"read": len(rows)}
        parts[name] = Texts([row["text"] for row in rows], [index[row["label"]] for row in rows])
    report["split_seed"] = split_seed
    report["line_breaks_replaced"] = False
    report["sizes"] = {name: len(part.texts) for name, part in parts.items()}
    return Splits(parts["train"], parts["validation"], parts["test"], names, report)


def _built_rows(
    folder: str, description: dict[str, Any], split: str, size: Size | None
) -> list[dict[str, Any]]:
    if size == 0 or (split == "validation" and split not in description["files"] and not size):
        return []
    rows = list(built.read_split(folder, split))
    if size is None or size == "all":
        return rows
    if size > len(rows):
        raise DataError(
            f"data: {split}_size must be at most the {len(rows):,} rows of the {split} split of "
            f"{folder!r}; got {size:,}. Ask for fewer with --{split}-size."
        )
    return rows[:size]


def _texts(rows: Rows, has_line_breaks: bool) -> list[str]:
    texts = [text or "" for text in rows.texts]
    return [replace_breaks(text) for text in texts] if has_line_breaks else texts


def _as_texts(rows: Sequence[Row]) -> Texts:
    return Texts([row.text for row in rows], [row.label for row in rows])
