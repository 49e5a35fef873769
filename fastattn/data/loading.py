"""From the name of a data set to train, validation and test sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastattn.data import built, sources
from fastattn.data.clean import Row, deduplicate, replace_breaks
from fastattn.data.labels import alike_labels, class_names
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
    data: str | Path | None = None,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    column: Mapping[str, str] | None = None,
    data_config: str | None = None,
    train_size: Size | None = None,
    validation_size: Size | None = None,
    test_size: Size | None = None,
    split_seed: int = 0,
) -> Splits:
    """Reads a data set, drops duplicates, and splits it (:mod:`fastattn.data.splits`).

    The splits of a folder that ``fastattn data build`` made (:mod:`fastattn.data.built`) are taken
    exactly as they are; a size takes the first rows of one, which are in random order.

    Args:
        data: None: the packaged reviews. Else, as the other arguments that are not named here, see
            :func:`fastattn.data.read`.
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
    data = None if data is None else str(data)
    if data not in (None, *sources.PACKAGED_NAMES) and built.is_built(Path(data).expanduser()):
        for setting, value in (
            ("text_column and label_column", text_column or label_column or column),
            ("data_config", data_config),
            ("split_seed", split_seed),
        ):
            _refuse_for_built(setting, value)
        return _load_built(data, sizes)
    source = sources.read(data, text_column, label_column, column=column, data_config=data_config)
    return _split(source, sizes, split_seed)


def load_packaged(
    name: str,
    *,
    train_size: Size | None = None,
    validation_size: Size | None = None,
    test_size: Size | None = None,
    split_seed: int = 0,
) -> Splits:
    """Reads and splits packaged data as :func:`load` does, whatever lies in the current folder.

    Args:
        name: one of :data:`fastattn.data.sources.PACKAGED_NAMES`.
    """
    sizes = Sizes(train_size, validation_size, test_size)
    check_sizes(sizes)
    return _split(sources.read_packaged(name), sizes, split_seed)


def _split(source: sources.Source, sizes: Sizes, split_seed: int) -> Splits:
    """Drops duplicates, and divides the rows by the rule of the splits."""
    label_names = class_names(
        [row["label"] for rows in source.sets.values() for row in rows], source.label_names
    )
    index = {name: number for number, name in enumerate(label_names)}
    report: dict[str, Any] = {
        "source": source.name,
        "notes": [*source.notes, *notes_on_labels(label_names)],
    }
    kept: dict[str, list[Row]] = {}
    for name, rows in source.sets.items():
        texts = [row["text"] for row in rows]
        if source.has_line_breaks:
            texts = [replace_breaks(text) for text in texts]
        result = deduplicate(texts, [index[row["label"]] for row in rows])
        kept[name] = result.rows
        empty = source.empty.get(name, 0)
        report[f"{name}_rows"] = {
            "read": len(texts) + empty,
            "empty": result.empty + empty,
            "duplicates": result.duplicates,
            "conflicting_labels": result.conflicts,
        }
    leaks = remove_shared(kept)
    for name, count in leaks.items():
        report[f"{name}_rows"]["also_held_out"] = count
    report["notes"] += notes_on_sets(kept)
    chosen = make_splits(
        kept["train"], kept.get("validation"), kept.get("test"), sizes, split_seed, label_names
    )
    train, validation, test = (_as_texts(rows) for rows in chosen)
    report["split_seed"] = split_seed
    report["line_breaks_replaced"] = source.has_line_breaks
    report["sizes"] = {
        name: len(part.texts)
        for name, part in (("train", train), ("validation", validation), ("test", test))
    }
    return Splits(train, validation, test, label_names, report)


def notes_on_sets(sets: Mapping[str, Sequence[Any]]) -> list[str]:
    """Returns what a person should know about the sets of a source, once they share no text."""
    if not sets.get("validation", True):
        return ["the validation set is not used: every row of it is in the test set, too"]
    return []


def notes_on_labels(names: Sequence[str]) -> list[str]:
    """Returns what a person should know about the names of some classes."""
    return [
        f"labels that differ by letter case alone are different classes: {', '.join(alike)}"
        for alike in alike_labels(names)
    ]


def _refuse_for_built(setting: str, value: Any) -> None:
    if value:
        raise DataError(
            f"data: {setting} must be left out for a built data set; got {value!r}. It has the "
            "columns text and label, and its splits as they were built."
        )


def _load_built(folder: str, sizes: Sizes) -> Splits:
    description = built.read_description(folder)
    if description["task"] != "classification":
        raise DataError(
            f"data: a data set for classification must be given; got {folder!r}, which was built "
            f"for {description['task']}. Build it with --task classification."
        )
    names: list[str] = description["label_names"]
    index = {name: number for number, name in enumerate(names)}
    report: dict[str, Any] = {"source": folder, "notes": ["splits as they were built"]}
    parts = {}
    for name, size in zip(Sizes._fields, sizes, strict=True):
        rows = _built_rows(folder, description, name, size)
        report[f"{name}_rows"] = {"read": len(rows)}
        unknown = sorted({row["label"] for row in rows} - index.keys())
        if unknown:
            raise DataError(
                f"data: the labels of the {name} split of {folder!r} must be those it was built "
                f"with, {', '.join(names)}; got {unknown[0]!r}. Build it again."
            )
        parts[name] = Texts([row["text"] for row in rows], [index[row["label"]] for row in rows])
    report["split_seed"] = 0
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


def _as_texts(rows: Sequence[Row]) -> Texts:
    return Texts([row.text for row in rows], [row.label for row in rows])
