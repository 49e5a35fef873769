"""Rows of a task from files, folders and the Hub, split into sets that share none.

The readers and the checks of rows are those of :mod:`fastattn.data.readers` and
:mod:`fastattn.data.tasks`, the rule of the splits is that of :mod:`fastattn.data.splits`.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastattn.data import sources
from fastattn.data.clean import text_key
from fastattn.data.readers import DEFAULT_OPTIONS, find_files, read_any_rows, row_error, strict
from fastattn.data.readers.hub import read_hub_sets
from fastattn.data.readers.record import Record
from fastattn.data.readers.sources import SUFFIXES
from fastattn.data.splits import Sizes, check_sizes, make_splits, remove_shared
from fastattn.data.tasks import Layout, RowProblem, task_row
from fastattn.errors import DataError
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.tasks.base import Example, TaskData

_SETS = ("train", "validation", "test")
# Columns of ours that well-known data sets of the Hub call otherwise.
_HUB_COLUMNS = {"tags": "ner_tags"}


class Found(NamedTuple):
    """The rows of a source, as it divides them; one undivided lot is its training set."""

    source: str
    sets: Mapping[str, Sequence[Example]]
    notes: Sequence[str] = ()  # what was put right, or left out, for people


class _Group(NamedTuple):
    """Rows that have to be in one set, such as translations of one sentence."""

    key: str
    rows: list[Example]
    label: int = 0  # no classes, in whose proportions to split


def read_rows(task: str, data: str, columns: Mapping[str, str], **settings: Any) -> Found:
    """Reads all rows of a source for a task.

    Args:
        task: a name of ``fastattn.finetune.tasks.TASK_NAMES``.
        data: a file; a folder, as ``fastattn data build`` writes it or with files named for their
            sets; a data set of the Hub.
        columns: the task's names for columns, and what the source calls them.
        settings: others of :class:`fastattn.data.tasks.Layout`.

    Raises:
        DataError: it is not there, or a row is not what the task needs; the message says which.
    """
    path = Path(data).expanduser()
    layout = Layout(columns=columns, **settings)
    if not path.exists() and path.suffix.lower() not in SUFFIXES and sources.may_be_hub_id(data):
        return rows_of_hub_sets(task, data, sources.download(data), layout)
    records = (
        (file.split, record)
        for file in find_files(path)
        for record in strict(read_any_rows(file, task, DEFAULT_OPTIONS, layout.required(task)))
    )
    return _found(str(path), task, records, layout)


def rows_of_hub_sets(task: str, name: str, sets: Mapping[str, Any], layout: Layout) -> Found:
    """Returns the rows of a ``datasets.DatasetDict``.

    Raises:
        DataError: a row is not what the task needs.
    """
    there = {column for table in sets.values() for column in table.column_names}
    columns = {
        ours: theirs
        for ours, theirs in _HUB_COLUMNS.items()
        if theirs in there and ours not in there
    }
    layout = dataclasses.replace(layout, columns={**columns, **layout.columns})
    pairs = ((split, record) for split, record in read_hub_sets(name, sets) if split is not None)
    return _found(name, task, pairs, layout)


def named_columns(config: FinetuneConfig, *, text: str, label: str) -> dict[str, str]:
    """Returns what the source calls the task's columns, as far as the settings say.

    Args:
        text, label: what the task calls what --text-column and --label-column name.
    """
    columns = {text: config.text_column, label: config.label_column}
    return {**{name: column for name, column in columns.items() if column}, **config.column}


def drop_unlabelled(found: Found, target: Callable[[Example], Any]) -> Found:
    """Drops validation and test sets in which no row has a target.

    Benchmarks keep the labels of their test sets to themselves.
    """
    empty = [
        name
        for name, rows in found.sets.items()
        if name != "train" and not any(target(row) for row in rows)
    ]
    sets = {name: rows for name, rows in found.sets.items() if name not in empty}
    return found._replace(sets=sets, notes=[*found.notes, *map(_unlabelled, empty)])


def split_rows(
    found: Found,
    config: FinetuneConfig,
    compared: Callable[[Example], str],
    keep_repeated: bool = False,
) -> TaskData:
    """Drops what is there twice, and divides the rows into sets that share no text.

    Args:
        compared: returns the text of a row that must be in one set alone. Rows with the same one
            stay together, and count as one in the sizes.
        keep_repeated: keeps rows that are there twice, for texts in which sentences occur again.

    Raises:
        DataError: more is asked for than there is.
    """
    wanted = Sizes(config.train_size, config.validation_size, config.test_size)
    check_sizes(wanted)
    report: dict[str, Any] = {"source": found.source, "notes": list(found.notes)}
    kept: dict[str, list[_Group]] = {}
    for name, rows in found.sets.items():
        kept[name] = _groups(rows, compared, keep_repeated)
        report[f"{name}_rows"] = {"read": len(rows)}
    before = _count_rows(kept)
    for name, count in before.items():
        report[f"{name}_rows"]["duplicates"] = report[f"{name}_rows"]["read"] - count
    remove_shared(kept)
    for name, count in _count_rows(kept).items():
        report[f"{name}_rows"]["also_held_out"] = before[name] - count
    if not kept["train"]:
        raise DataError(
            f"data: {found.source} must hold rows to train on; got none that are not in its other "
            "sets. Check that it is the right source."
        )
    groups = make_splits(
        kept["train"], kept.get("validation"), kept.get("test"), wanted, config.split_seed
    )
    train, validation, test = ([row for group in part for row in group.rows] for part in groups)
    report["split_seed"] = config.split_seed
    report["sizes"] = dict(zip(_SETS, map(len, (train, validation, test)), strict=True))
    return TaskData(train, validation, test, [], report)


def _count_rows(sets: Mapping[str, Sequence[_Group]]) -> dict[str, int]:
    return {name: sum(len(group.rows) for group in groups) for name, groups in sets.items()}


def _found(
    source: str, task: str, records: Iterable[tuple[str | None, Record]], layout: Layout
) -> Found:
    by_split: dict[str | None, list[Example]] = {}
    unlabelled: dict[str, DataError] = {}
    repairs: Counter[str] = Counter()
    for split, record in records:
        rows = by_split.setdefault(split, [])
        try:
            result = task_row(task, record.fields, layout)
        except RowProblem as error:
            problem = row_error(record.file, record.row, error.problem, error.remedy)
            # A set without any labels is none to us; one without some has mistakes.
            if error.reason == "no_label" and split in ("validation", "test") and not rows:
                unlabelled.setdefault(split, problem)
                continue
            raise problem from error
        if split in unlabelled:
            raise unlabelled[split]
        rows.append(result.row)
        repairs.update(result.repairs)
    for split in unlabelled:
        del by_split[split]
    notes = [f"{count:,} rows: {repair}" for repair, count in repairs.items()]
    notes += map(_unlabelled, unlabelled)
    return Found(source, _named(source, by_split), notes)


def _named(source: str, by_split: dict[str | None, list[Example]]) -> dict[str, list[Example]]:
    """The sets by their names; a single one is to train on and to be split."""
    if not by_split:
        raise DataError(
            f"data: {source} must have at least one row; got none. "
            "Check that it is the right source."
        )
    if len(by_split) == 1:
        return {"train": next(iter(by_split.values()))}
    if "train" not in by_split:
        raise DataError(
            f"data: {source} must hold a train file or split; got "
            f"{', '.join(sorted(filter(None, by_split)))}. Name the training rows so."
        )
    return {name: by_split[name] for name in _SETS if name in by_split}


def _unlabelled(split: str) -> str:
    return f"the {split} set has no labels and is not used"


def _groups(
    rows: Sequence[Example], compared: Callable[[Example], str], keep_repeated: bool
) -> list[_Group]:
    """One of each different row, in an order that does not depend on theirs, group by group."""
    groups: dict[str, list[tuple[str, Example]]] = {}
    for row in rows:
        written = json.dumps(row, sort_keys=True, ensure_ascii=False)
        groups.setdefault(text_key(compared(row)), []).append((written, row))
    return [_Group(key, _different(group, keep_repeated)) for key, group in groups.items()]


def _different(group: list[tuple[str, Example]], keep_repeated: bool) -> list[Example]:
    ordered = sorted(group, key=lambda pair: pair[0])
    if keep_repeated:
        return [row for _, row in ordered]
    return list(dict(ordered).values())
