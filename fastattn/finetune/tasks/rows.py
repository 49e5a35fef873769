"""Rows of a task from files, folders and the Hub, split into sets that share none.

They are read by :mod:`fastattn.data.sources`; the rule of the splits is that of
:mod:`fastattn.data.splits`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fastattn.data.clean import text_key
from fastattn.data.loading import notes_on_sets
from fastattn.data.sources import Source, read_rows, unlabelled
from fastattn.data.splits import Sizes, check_sizes, make_splits, remove_shared
from fastattn.errors import DataError
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.tasks.base import Example, TaskData

_SETS = ("train", "validation", "test")


class _Group(NamedTuple):
    """Rows that have to be in one set, such as translations of one sentence."""

    key: str
    rows: list[Example]
    label: int = 0  # no classes, in whose proportions to split


class _Made(Protocol):
    """A module that makes data, of :mod:`fastattn.finetune.demos`."""

    SOURCE: str

    @property
    def SIZES(self) -> Mapping[str, int]: ...

    def rows(self, name: str, /) -> Sequence[Example]: ...


def read_data(config: FinetuneConfig, made: _Made | None = None) -> Source:
    """Reads all rows of the settings' data for their task.

    Args:
        made: makes the task's packaged data. Without it the data must be the user's own.

    Raises:
        DataError: it is not there, or a row is not what the task needs; the message says which.
    """
    if made is not None and config.packaged_data():
        return Source(made.SOURCE, {name: made.rows(name) for name in made.SIZES})
    return read_rows(config.task, config.data or "", config.layout(), config.data_config)


def drop_unlabelled(found: Source, target: Callable[[Example], Any]) -> Source:
    """Drops validation and test sets in which no row has a target.

    Benchmarks keep the labels of their test sets to themselves.
    """
    empty = [
        name
        for name, rows in found.sets.items()
        if name != "train" and not any(target(row) for row in rows)
    ]
    sets = {name: rows for name, rows in found.sets.items() if name not in empty}
    return found._replace(sets=sets, notes=[*found.notes, *map(unlabelled, empty)])


def split_rows(
    found: Source,
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
    report: dict[str, Any] = {"source": found.name, "notes": list(found.notes)}
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
    report["notes"] += notes_on_sets(kept)
    if not kept["train"]:
        raise DataError(
            f"data: {found.name} must hold rows to train on; got none that are not in its other "
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
