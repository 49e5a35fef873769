"""The rows of each task: what they must hold, and how rows of a source become them.

classification        {"text": str, "label": str}
multilabel            {"text": str, "labels": [str, ...]}         sorted, may be empty
token-classification  {"tokens": [str, ...], "tags": [str, ...]}  IOB2
question-answering    {"id": str, "context": str, "question": str,
                       "answers": {"text": [str, ...], "answer_start": [int, ...]}}
                                                                  empty: no answer
masked-lm             {"text": str}
translation           {"source": str, "target": str}
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fastattn.data.readers import (
    DEFAULT_OPTIONS,
    ReadOptions,
    find_files,
    read_any_rows,
    row_error,
    strict,
)
from fastattn.data.readers.record import shorten
from fastattn.errors import DataError

COLUMNS: dict[str, tuple[str, ...]] = {
    "classification": ("text", "label"),
    "multilabel": ("text", "labels"),
    "token-classification": ("tokens", "tags"),
    "question-answering": ("id", "context", "question", "answers"),
    "masked-lm": ("text",),
    "translation": ("source", "target"),
}
TASKS = tuple(COLUMNS)
# Columns that a source may lack.
_OPTIONAL = ("id",)
# What --text-column and --label-column name. Translations have two texts, so --column alone says
# which is meant.
_TEXTS = {
    **{"classification": "text", "multilabel": "text", "masked-lm": "text"},
    **{"token-classification": "tokens", "question-answering": "context"},
}
_LABELS = {
    **{"classification": "label", "multilabel": "labels"},
    **{"token-classification": "tags", "question-answering": "answers"},
}


@dataclass(frozen=True)
class Layout:
    """Where a source keeps what the task needs.

    Args:
        columns: {"text": "review"} reads the text from the column ``review``. A dot reaches into
            an object: {"source": "translation.en"}.
        labels: {"0": "negative"} names classes, and tags anew. An empty name is no label.
        label_separator: between the labels of one cell, for multilabel tables.
        label_columns: columns of 0 and 1, one for each label, for multilabel tables.
        plain_tags: tags are classes of single tokens, such as parts of speech, and not IOB2.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    label_separator: str = "|"
    label_columns: Sequence[str] = ()
    plain_tags: bool = False

    def column(self, name: str) -> str:
        """Returns the column of a source that holds a column of the task."""
        return self.columns.get(name, name)

    def required(self, task: str) -> dict[str, str]:
        """Returns the columns that a table must have, and the option that names each of them."""
        names = [name for name in COLUMNS[task] if name not in _OPTIONAL]
        if self.label_columns:
            names.remove("labels")
        return {
            **{self.column(name): f"--column {name}=COLUMN" for name in names},
            **dict.fromkeys(self.label_columns, "--label-columns"),
        }

    def check(self, task: str) -> None:
        """Raises a DataError that names the first setting that the task does not use."""
        for name in self.columns:
            if name not in COLUMNS[task]:
                raise DataError(
                    f"data: column must name one of the columns {', '.join(COLUMNS[task])} of the "
                    f"task {task}; got {name!r}. Write it as in --column {COLUMNS[task][0]}=NAME."
                )
        for name, (setting, tasks) in _SETTINGS.items():
            value = getattr(self, name)
            if value and value != getattr(DEFAULT_LAYOUT, name):
                check_used(setting, value, task, tasks)
        if self.label_columns and ("labels" in self.columns or self.label_separator != "|"):
            other = "label_column" if "labels" in self.columns else "label_separator"
            raise DataError(
                f"data: {other} must be left out where label_columns has a column for each label; "
                f"got label_columns={', '.join(self.label_columns)}. Leave one of them out."
            )


DEFAULT_LAYOUT = Layout()
# Of a layout's fields beside the columns: how users call each, and the tasks that use it.
_SETTINGS = {
    "labels": ("label_map", ("classification", "multilabel", "token-classification")),
    "label_separator": ("label_separator", ("multilabel",)),
    "label_columns": ("label_columns", ("multilabel",)),
    "plain_tags": ("plain_tags", ("token-classification",)),
}


class TaskRow(NamedTuple):
    """A row of the task, and what was put right in it."""

    row: dict[str, Any]
    repairs: tuple[str, ...] = ()


class RowProblem(Exception):
    """A row is not what the task needs.

    ``reason`` is one word for counts: "empty", "no_label" or "invalid".
    """

    def __init__(self, reason: str, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.reason, self.problem, self.remedy = reason, problem, remedy


def name_columns(
    task: str,
    text_column: str | None = None,
    label_column: str | None = None,
    column: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Returns what a source calls the columns of a task, by the names that the task has for them.

    Args:
        text_column: the column with the texts (tokens, contexts), as ``--text-column`` gives it.
        label_column: the column with the labels (tags, answers), as ``--label-column`` gives it.
        column: any columns, by the task's names, as ``--column`` gives them.

    Raises:
        DataError: the task has no such column, or the same is said in two ways that differ.
    """
    columns = dict(column or {})
    for option, kinds, value in (
        ("text_column", _TEXTS, text_column),
        ("label_column", _LABELS, label_column),
    ):
        if value is None:
            continue
        name = kinds.get(task)
        if name is None:
            instead = [f"--column {own}={value}" for own in COLUMNS[task]]
            advice = (
                f"Use {' or '.join(instead)}"
                if len(instead) > 1
                else f"Leave --{option.replace('_', '-')} out"
            )
            raise DataError(
                f"data: {option} must be left out for the task {task}, whose rows have "
                f"{' and '.join(COLUMNS[task])} alone; got {value!r}. {advice}."
            )
        if columns.setdefault(name, value) != value:
            raise DataError(
                f"data: {option} and column must not name different columns for {name!r}; got "
                f"{value!r} and {columns[name]!r}. Leave one of them out."
            )
    return columns


def check_used(setting: str, value: Any, task: str, tasks: Sequence[str], op: str = "data") -> None:
    """Raises a DataError unless the task is one of those that use a setting.

    Args:
        op: what the setting is of, which the message begins with.
    """
    if task in tasks:
        return
    option = f"--{setting.replace('_', '-')}"
    raise DataError(
        f"{op}: {setting} must be left out unless the task is {' or '.join(tasks)}; got {value!r} "
        f"for the task {task}. Leave {option} out, or use --task {tasks[0]}."
    )


def check_task(task: str) -> None:
    """Raises a DataError unless the task is one of :data:`TASKS`."""
    if task not in TASKS:
        raise DataError(f"data: task must be one of {', '.join(TASKS)}; got {task!r}. Use --task.")


def task_row(task: str, fields: Mapping[str, Any], layout: Layout = DEFAULT_LAYOUT) -> TaskRow:
    """Returns the row of a task that the fields of a source's row hold.

    Raises:
        RowProblem: they hold none; it says why.
    """
    return _BUILDERS[task](fields, layout)


def read_task_rows(
    source: str | Path,
    task: str,
    layout: Layout = DEFAULT_LAYOUT,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Yields (split, row) for each row of a file or folder, in the order of the files.

    The split is "train", "validation", "test", or None where the source says nothing.

    Raises:
        DataError: a row is not what the task needs; the message has its file and row.
    """
    check_task(task)
    for file in find_files(source):
        for record in strict(read_any_rows(file, task, options, layout.required(task))):
            try:
                yield file.split, task_row(task, record.fields, layout).row
            except RowProblem as error:
                raise row_error(record.file, record.row, error.problem, error.remedy) from error


def label_names(labels: set[str]) -> list[str]:
    """Returns the names of classes in the order of their numbers, or in alphabetical order."""
    if all(re.fullmatch(r"-?\d{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _value(fields: Mapping[str, Any], name: str, layout: Layout) -> Any:
    column = layout.column(name)
    if column in fields:
        return fields[column]
    value: Any = fields
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise RowProblem(
                "invalid",
                f"a row must have a field {column!r}; got {', '.join(fields) or 'none'}",
                f"Name the one that is meant with --column {name}=COLUMN.",
            )
        value = value[part]
    return value


def _text(fields: Mapping[str, Any], name: str, layout: Layout) -> str:
    value = _value(fields, name, layout)
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise RowProblem("empty", f"{name} must hold a text; got none", "Add it.")
    if not isinstance(value, str):
        raise RowProblem(
            "invalid",
            f"{name} must be a text; got {shorten(value)}",
            f"Name the column of texts with --column {name}=COLUMN.",
        )
    return value


# The fraction of a number that is whole: 1.0 is the class 1.
_WHOLE = re.compile(r"([+-]?\d+)\.0*")
_FRACTION = re.compile(r"[+-]?(\d*\.\d+([eE][+-]?\d+)?|\d+e-\d{2,})")  # 1e-05 as programs write


def _label(value: Any, layout: Layout) -> str | None:
    """The name of one class, None if there is none."""
    if value is None or value != value:
        return None
    if not isinstance(value, (str, int, float)):
        raise RowProblem(
            "invalid",
            f"a label must be a whole number or a string; got {shorten(value)}",
            "Use --task multilabel if a row has several, or name another column with "
            "--label-column.",
        )
    name = str(value).strip()
    whole = _WHOLE.fullmatch(name)
    name = whole[1] if whole else name
    name = layout.labels.get(name, name).strip()
    if not name.isprintable() and any(unicodedata.category(sign) == "Cc" for sign in name):
        raise RowProblem(
            "invalid",
            f"a label must hold no control character or line break; got {shorten(name)}",
            "Correct it, or name another column with --label-column.",
        )
    is_number = isinstance(value, float) and name == str(value)  # as infinity is
    if is_number or _FRACTION.fullmatch(name):
        raise RowProblem(
            "invalid",
            f"a label must be a class, a whole number or a string; got {name}",
            "Name the column of classes with --label-column, or give this number a class with "
            f"`fastattn data build --label-map {name}=NAME`.",
        )
    return name or None


def _classification(fields: Mapping[str, Any], layout: Layout) -> TaskRow:
    text = _text(fields, "text", layout)
    label = _label(_value(fields, "label", layout), layout)
    if label is None:
        raise RowProblem(
            "no_label",
            "a row must have a label; got none",
            "Add it or remove the row, or name another column with --label-column.",
        )
    return TaskRow({"text": text, "label": label})


def _multilabel(fields: Mapping[str, Any], layout: Layout) -> TaskRow:
    text = _text(fields, "text", layout)
    if layout.label_columns:
        values: Any = [name for name in layout.label_columns if _is_set(fields, name)]
    else:
        values = _list(_value(fields, "labels", layout), layout.label_separator)
    if values is None:
        raise RowProblem(
            "invalid",
            f"labels must be a list; got {shorten(_value(fields, 'labels', layout))}",
            'Write ["a", "b"], or a|b in a table; an empty list is no label at all.',
        )
    names = {_label(value, layout) for value in values}
    return TaskRow({"text": text, "labels": sorted(name for name in names if name)})


def _is_set(fields: Mapping[str, Any], column: str) -> bool:
    value = fields.get(column)
    word = str(value).strip().lower()
    if word in ("1", "1.0", "true"):
        return True
    if word in ("0", "0.0", "false"):
        return False
    raise RowProblem(
        "invalid", f"{column} must be 0 or 1; got {shorten(value)}", "Correct that cell."
    )


def _list(value: Any, separator: str | None) -> list[Any] | None:
    """A list from a list, from JSON, or from words between separators; None if it is none."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return None
        else:
            return [part for part in value.split(separator) if part.strip()]
    return value if isinstance(value, list) else None


_TAG = re.compile(r"([BIESLU])-(\S.*)")
# Of IOBES and BILOU: how a span of one token, and the last token of a longer one, are marked.
_AS_IOB2 = {"S": "B", "U": "B", "E": "I", "L": "I"}


def _token(fields: Mapping[str, Any], layout: Layout) -> TaskRow:
    tokens = _list(_value(fields, "tokens", layout), None)
    tags = _list(_value(fields, "tags", layout), None)
    if tokens is None or tags is None:
        name = "tokens" if tokens is None else "tags"
        raise RowProblem(
            "invalid",
            f"{name} must be a list; got {shorten(_value(fields, name, layout))}",
            'Write ["a", "b"].',
        )
    if not tokens:
        raise RowProblem("empty", "tokens must hold a token; got none", "Add them.")
    if len(tokens) != len(tags):
        raise RowProblem(
            "invalid",
            f"each token must have a tag; got {len(tokens)} tokens and {len(tags)} tags",
            "Correct the row.",
        )
    for token in tokens:
        if not isinstance(token, str) or not token.strip():
            raise RowProblem(
                "invalid", f"a token must be a text; got {shorten(token)}", "Correct the row."
            )
    names = [_label(tag, layout) for tag in tags]
    if None in names:
        raise RowProblem(
            "no_label", f"each token must have a tag; got none for {tokens[names.index(None)]!r}",
            "Add it; O is the tag of a token outside of all spans.",
        )  # fmt: skip
    if layout.plain_tags:
        return TaskRow({"tokens": tokens, "tags": names})
    as_iob2 = to_iob2([name for name in names if name])
    repairs = ("tags rewritten as IOB2",) if as_iob2 != names else ()
    return TaskRow({"tokens": tokens, "tags": as_iob2}, repairs)


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Returns the tags with B- at the first token of every span and I- at its others.

    Takes IOB2, IOB1 (B- between neighbouring spans of a type alone), IOBES and BILOU. A span goes
    on while the type stays the same and no tag begins another.

    Raises:
        RowProblem: a tag is neither O nor a letter of these, a hyphen and a type.
    """
    result = []
    before: str | None = None  # type of the span that is open
    for tag in tags:
        if tag == "O":
            result.append(tag)
            before = None
            continue
        match = _TAG.fullmatch(tag)
        if match is None:
            raise RowProblem(
                "invalid",
                f"a tag must be O, B-TYPE or I-TYPE; got {tag!r}",
                "Use --plain-tags if tags are classes of single tokens, or give it another name "
                f"with `fastattn data build --label-map {tag}=B-TYPE`.",
            )
        letter, kind = _AS_IOB2.get(match[1], match[1]), match[2]
        begins = letter == "B" or before != kind
        result.append(f"{'B' if begins else 'I'}-{kind}")
        before = None if match[1] in "SUEL" else kind
    return result


def _qa(fields: Mapping[str, Any], layout: Layout) -> TaskRow:
    context = _text(fields, "context", layout)
    question = _text(fields, "question", layout)
    pairs = _answers(_value(fields, "answers", layout))
    if pairs and fields.get("is_impossible") is True:
        raise RowProblem(
            "invalid",
            "a question must have no answer where is_impossible is true; got "
            f"{shorten(pairs[0][0])}",
            "Correct one of the two: empty lists are no answer.",
        )
    texts, starts, repaired = [], [], False
    for text, start in pairs:
        found = start if context[start : start + len(text)] == text else _only_place(context, text)
        if found is None:
            there = context[start : start + len(text)]
            raise RowProblem(
                "invalid",
                f"an answer must be in the context at its answer_start; got {shorten(text)} at "
                f"{start}, where the context has {shorten(there)}",
                "Correct answer_start (characters from 0), or remove the answer.",
            )
        repaired = repaired or found != start
        texts.append(text)
        starts.append(found)
    name = fields.get(layout.column("id"))
    if name is None or not str(name).strip():
        name = hashlib.sha256(f"{context}\n{question}".encode()).hexdigest()[:24]
    row = {
        "id": str(name),
        "context": context,
        "question": question,
        "answers": {"text": texts, "answer_start": starts},
    }
    return TaskRow(row, ("answer_start corrected",) if repaired else ())


def _answers(value: Any) -> list[tuple[str, int]]:
    """Pairs of text and start, from SQuAD's list of objects or from the Hub's object of lists."""
    wrong = RowProblem(
        "invalid",
        f"answers must hold texts and as many answer_start; got {shorten(value)}",
        'Write {"text": ["..."], "answer_start": [0]}; empty lists are no answer.',
    )
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise wrong from None
    try:
        if isinstance(value, list):
            texts = [answer["text"] for answer in value]
            starts = [answer["answer_start"] for answer in value]
        else:
            texts, starts = value["text"], value["answer_start"]
        pairs = list(zip(texts, starts, strict=True))
    except (KeyError, TypeError, ValueError):
        raise wrong from None
    for text, start in pairs:
        if not isinstance(text, str) or not text.strip() or type(start) is not int or start < 0:
            raise wrong
    return pairs


def repeated_id(name: str, file: str, row: int) -> tuple[str, str]:
    """Returns what is wrong with a question whose id another one has, and what to do.

    Args:
        name: the id.
        file, row: where the other question is.
    """
    return (
        f"a question must have an id of its own; got {shorten(name)}, which row {row:,} of {file} "
        "has for another",
        "Give one of them another id; if they are one question, put all of its answers into one "
        "row.",
    )


def _only_place(context: str, text: str) -> int | None:
    """Where the text is in the context, if it is there once."""
    place = context.find(text)
    return None if place < 0 or context.find(text, place + 1) >= 0 else place


def _mlm(fields: Mapping[str, Any], layout: Layout) -> TaskRow:
    return TaskRow({"text": _text(fields, "text", layout)})


def _translation(fields: Mapping[str, Any], layout: Layout) -> TaskRow:
    names = ("source", "target")
    return TaskRow({name: _text(fields, name, layout) for name in names})


_BUILDERS: dict[str, Callable[[Mapping[str, Any], Layout], TaskRow]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "token-classification": _token,
    "question-answering": _qa,
    "masked-lm": _mlm,
    "translation": _translation,
}
