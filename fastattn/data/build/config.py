"""What a build is asked for."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastattn.data.readers import ReadOptions
from fastattn.data.readers.lines import check_encoding
from fastattn.data.tasks import Layout, check_task, check_used
from fastattn.errors import DataError

AUTO = "auto"
# Tasks whose labels a simple model looks at (fastattn.data.build.suspects).
SUSPECTS_TASKS = ("classification", "multilabel", "token-classification")
# Settings that some tasks alone use, beside those of a layout, which knows its own.
_OF_TASKS = {
    "balance": ("classification",),
    "augment": ("classification", "multilabel"),
    "token_column": ("token-classification",),
    "tag_column": ("token-classification",),
    "whole_files": ("classification", "multilabel", "masked-lm"),
}


@dataclass(frozen=True)
class BuildConfig:
    """Settings of :func:`fastattn.data.build.build`. ``check`` raises a DataError for a bad one.

    Args:
        sources: files, folders, data sets of the Hub, or "imdb"; "test=FILE" says which split.
        output: the folder to make.
        task: one of :data:`fastattn.data.tasks.TASKS`.
        data_config: which configuration of the source, a data set of the Hub or a copy of one.
        columns: {"text": "review"}: the task's column and the source's.
        labels: {"0": "negative"}: new names for classes or tags.
        label_columns: for multilabel tables, columns of 0 and 1.
        label_separator: for multilabel tables, between the labels of a cell.
        group_column: rows with the same value there stay in one split.
        plain_tags: tags are classes of single tokens, not IOB2.
        encoding: of text files; "auto" takes UTF-8 and detects others if there is no doubt.
        delimiter, quotes: of CSV and TSV files.
        token_column, tag_column: of CoNLL files.
        whole_files: each text file is one text.
        bad_rows: "stop" at a row that cannot be read or used, or "reject" it and go on.
        repair: put mojibake and decomposed characters right.
        min_words, max_words: of a text; others are rejected.
        near_duplicates: "group" keeps them in one split, "drop" keeps one of them, "keep" does
            not look for them.
        similarity: from which share of common 5-grams of characters texts are near-duplicates.
        suspects: "flag" labels that a simple model finds unlikely, "drop" their rows, or "off".
        validation_size, test_size: a number of rows or a share. None: a tenth, at most 5,000, if
            the source does not bring the split.
        seed: another number, another split.
        balance: "none", "downsample" or "upsample" the classes of the training split.
        augment: altered copies of each training row.
        format: of the splits, "jsonl" or "parquet".
        tokenizer: for the lengths in the report; "minilm-l6", a folder or a name on the Hub.
        max_length: tokens after which training will cut a text, for the report.
        overwrite: replace a data set that a build made there.
        progress: show a progress bar.
    """

    sources: Sequence[str | Path]
    output: str | Path
    task: str = "classification"
    data_config: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    label_columns: Sequence[str] = ()
    label_separator: str = "|"
    group_column: str | None = None
    plain_tags: bool = False
    encoding: str = AUTO
    delimiter: str | None = None
    quotes: bool = True
    token_column: int = 0
    tag_column: int = -1
    whole_files: bool = False
    bad_rows: str = "stop"
    repair: bool = True
    min_words: int = 1
    max_words: int | None = None
    near_duplicates: str = "group"
    similarity: float = 0.8
    suspects: str = "flag"
    validation_size: float | None = None
    test_size: float | None = None
    seed: int = 0
    balance: str = "none"
    augment: int = 0
    format: str = "jsonl"
    tokenizer: str = "minilm-l6"
    max_length: int = 512
    overwrite: bool = False
    progress: bool = True

    @property
    def layout(self) -> Layout:
        """Where the rows keep what the task needs."""
        return Layout(
            self.columns, self.labels, self.label_separator, self.label_columns, self.plain_tags
        )

    def read_options(self, encoding: str) -> ReadOptions:
        """Returns how a file of this encoding is read."""
        return ReadOptions(
            encoding,
            self.delimiter,
            self.quotes,
            self.token_column,
            self.tag_column,
            self.whole_files,
        )

    def check(self) -> None:
        """Raises a DataError that names the first setting that breaks its rule."""
        check_task(self.task)
        if isinstance(self.sources, (str, os.PathLike)):
            raise DataError(
                f"data build: sources must be a list of names; got {str(self.sources)!r}. Put it "
                "into a list."
            )
        if not self.sources or not all(str(source).strip() for source in self.sources):
            got = "none" if not self.sources else "an empty name"
            raise DataError(
                f"data build: sources must name at least one file, folder or data set; got {got}. "
                "Give them before the options."
            )
        if isinstance(self.label_columns, str):
            raise DataError(
                "data build: label_columns must be a list of names; got "
                f"{self.label_columns!r}. Put them into a list."
            )
        for name, allowed, rule in _RULES:
            value = getattr(self, name)
            if not allowed(value):
                raise _error(name, rule, repr(value))
        self.layout.check(self.task)
        if self.encoding != AUTO:
            check_encoding(self.encoding)
        self._check_task_options()

    def is_given(self, name: str) -> bool:
        """Whether a setting differs from its default."""
        return bool(getattr(self, name) != _DEFAULTS[name])

    def _check_task_options(self) -> None:
        for name, tasks in _OF_TASKS.items():
            if self.is_given(name):
                check_used(name, getattr(self, name), self.task, tasks, op="data build")
        if self.suspects == "drop":
            check_used("suspects", "drop", self.task, SUSPECTS_TASKS, op="data build")
        if self.is_given("similarity") and self.near_duplicates == "keep":
            raise DataError(
                "data build: similarity must be left out where near_duplicates is 'keep', which "
                f"does not look for any; got {self.similarity!r}. Leave --similarity out."
            )
        if self.data_config is not None and len(self.sources) != 1:
            raise DataError(
                "data build: data_config must be given with one source alone, whose configuration "
                f"it names; got {self.data_config!r} and {len(self.sources)} sources. Build each "
                "configuration by itself."
            )

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings that decide what is built, as plain values."""
        left_out = ("sources", "output", "overwrite", "progress")
        settings = {x.name: getattr(self, x.name) for x in dataclasses.fields(self)}
        plain = {Mapping: dict, Sequence: list}
        return {
            name: next(
                (
                    make(value)
                    for kind, make in plain.items()
                    if isinstance(value, kind) and not isinstance(value, str)
                ),
                value,
            )
            for name, value in settings.items()
            if name not in left_out
        }


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(BuildConfig)}


def _error(name: str, rule: str, got: str) -> DataError:
    return DataError(
        f"data build: {name} must {rule}; got {got}. Set it with --{name.replace('_', '-')}."
    )


def _whole(low: int) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and low <= x < 2**32


def _one_of(*words: str) -> tuple[Callable[[Any], bool], str]:
    quoted = ", ".join(f'"{word}"' for word in words)
    return lambda x: x in words, f"be one of {quoted}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _size(value: Any) -> bool:
    if value is None:
        return True
    if not _is_number(value):
        return False
    return 0 <= value < 1 or (value >= 1 and float(value).is_integer())


_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("min_words", _whole(0), "be a whole number of at least 0"),
    ("max_words", lambda x: x is None or _whole(1)(x), "be a whole number of at least 1"),
    ("max_length", _whole(4), "be a whole number of at least 4"),
    ("seed", _whole(0), "be a whole number of at least 0"),
    (
        "augment",
        lambda x: _whole(0)(x) and x <= 20,
        "be a whole number of copies from 0 to 20",
    ),
    ("similarity", lambda x: _is_number(x) and 0.5 <= x <= 1, "be between 0.5 and 1"),
    ("output", lambda x: str(x).strip() != "", "be the name of a folder"),
    (
        "delimiter",
        lambda x: x in (None, "tab", "\\t") or (len(x) == 1 and x not in '"\r\n'),
        'be one character or "tab", and neither a quote nor a line end',
    ),
    ("validation_size", _size, "be a whole number of rows, or a share below 1"),
    ("test_size", _size, "be a whole number of rows, or a share below 1"),
    ("bad_rows", *_one_of("stop", "reject")),
    ("near_duplicates", *_one_of("group", "drop", "keep")),
    ("suspects", *_one_of("flag", "drop", "off")),
    ("balance", *_one_of("none", "downsample", "upsample")),
    ("format", *_one_of("jsonl", "parquet")),
    ("label_separator", lambda x: isinstance(x, str) and x != "", "be at least one character"),
)
