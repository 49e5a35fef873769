"""From the sources to the working table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastattn.data import sources as named_sources
from fastattn.data.build.config import AUTO, BuildConfig
from fastattn.data.build.encoding import detect_encoding, repair_row
from fastattn.data.build.folder import check_no_source_inside
from fastattn.data.build.progress import Progress
from fastattn.data.build.store import Store
from fastattn.data.built import is_built
from fastattn.data.clean import text_key
from fastattn.data.readers import BadRow, Record, SourceFile, find_files, read_any_rows
from fastattn.data.readers.hub import read_hub_sets
from fastattn.data.readers.sources import CONLL, SPLIT_NAMES, SUFFIXES, TABLES, unread_files
from fastattn.data.tasks import RowProblem, TaskRow, task_row
from fastattn.errors import DataError

_EXAMPLES = 10  # of repairs, for the report
_CHUNK = 2**20
# Between the labels of a row in its stratum; no label holds it.
SEPARATOR = "\x1f"


class Ingested(NamedTuple):
    """What was read, for the report and for dataset.json."""

    sources: list[dict[str, Any]]  # name, sha256, bytes, encoding
    repairs: dict[str, int]
    examples: list[dict[str, Any]]  # of repairs: file, row, kind, before, after
    unused_labels: list[str]  # that were to have other names, and that no row has
    unread: list[str]  # files that lie beside those that were read


class _Origin(NamedTuple):
    """A file, or a data set that is none, with its rows."""

    name: str
    size: int | None  # in lines or rows, for the progress bar
    rows: Iterator[tuple[str | None, Record | BadRow]]
    facts: dict[str, Any]


def ingest(config: BuildConfig, store: Store, progress: Progress) -> Ingested:
    """Reads every source into the store.

    Raises:
        DataError: a source cannot be read, or a row is bad and ``bad_rows`` is "stop".
    """
    unread: list[str] = []
    origins = list(_origins(config, unread))
    totals = [origin.size for origin in origins]
    total = None if None in totals else sum(size for size in totals if size is not None)
    reader = _Reader(config, store)
    with progress.stage("reading", total) as advance:
        for origin in origins:
            before = 0
            for split, record in origin.rows:
                reader.take(split, record)
                advance(record.row - before)
                before = record.row
    store.index()
    return Ingested(
        [x.facts for x in origins],
        dict(reader.repairs),
        reader.examples,
        reader.new_names.unused(),
        unread,
    )


def _origins(config: BuildConfig, unread: list[str]) -> Iterator[_Origin]:
    """Yields what is to be read, and adds to ``unread`` what lies beside it."""
    files: list[SourceFile] = []
    for source in map(str, config.sources):
        split, _, rest = source.partition("=")
        if split in SPLIT_NAMES and rest:
            source = rest
        else:
            split = ""
        path = Path(source).expanduser()
        is_packaged = source == named_sources.PACKAGED_IMDB
        if is_packaged:
            named_sources.check_one_meaning(source, str(config.output))
        is_hub_name = named_sources.is_hub_name(source)
        if split and (is_packaged or is_hub_name):
            raise DataError(
                "data build: a split must be said of a file or folder; got "
                f"{split}={source}, a data set that is neither. Leave {split}= out."
            )
        if is_packaged:
            yield _packaged(config)
        elif is_hub_name:
            sets = named_sources.download(source, config.data_config)
            yield _hub_origin(source, sets, config)
        elif config.data_config is not None:
            yield _hub_origin(source, named_sources.load_copy(source, config.data_config), config)
        else:
            found = find_files(path, split or None)
            unread += [] if is_built(path) else unread_files(path, found)
            files += found
    _check_file_options(config, files)
    check_no_source_inside(Path(config.output).expanduser(), [file.path for file in files])
    for file in _told_apart(files):
        yield _file_origin(file, config)


def _told_apart(files: list[SourceFile]) -> list[SourceFile]:
    """Names files of one name by as many of their folders as differ."""
    named: dict[str, dict[Path, SourceFile]] = {}
    for file in files:
        named.setdefault(file.name, {})[file.path.absolute()] = file
    names = {}
    for name, alike in named.items():
        depth = len(Path(name).parts)
        while len({path.parts[-depth:] for path in alike}) < len(alike):
            depth += 1
        for path in alike:
            names[path] = name if len(alike) == 1 else "/".join(path.parts[-depth:])
    return [file._replace(name=names[file.path.absolute()]) for file in files]


# Settings of how files are read: the kinds of files that they are about, and what to call these.
_OF_FILES = {
    "delimiter": (TABLES, "a CSV or TSV file"),
    "quotes": (TABLES, "a CSV or TSV file"),
    "token_column": ((*CONLL, ".txt"), "a CoNLL file"),
    "tag_column": ((*CONLL, ".txt"), "a CoNLL file"),
    "whole_files": ((".txt",), "a text file"),
    "encoding": (tuple(x for x in SUFFIXES if x != ".parquet"), "a text file"),
}


def _check_file_options(config: BuildConfig, files: list[SourceFile]) -> None:
    """Raises a DataError for a setting of a kind of file of which there is none."""
    kinds = {file.path.suffix.lower() for file in files}
    for setting, (suffixes, words) in _OF_FILES.items():
        if config.is_given(setting) and not kinds.intersection(suffixes):
            option = "no-quotes" if setting == "quotes" else setting.replace("_", "-")
            raise DataError(
                f"data build: {setting} must be left out where no source is {words}; got "
                f"{getattr(config, setting)!r}. Leave --{option} out."
            )


def _hub_origin(name: str, sets: Any, config: BuildConfig) -> _Origin:
    origin = named_sources.hub_name(name, config.data_config)
    facts = {"name": origin, "rows": {split: len(table) for split, table in sets.items()}}
    return _Origin(origin, sum(map(len, sets.values())), read_hub_sets(origin, sets), facts)


def _packaged(config: BuildConfig) -> _Origin:
    source = named_sources.read(None, data_config=config.data_config)

    def rows() -> Iterator[tuple[str | None, Record | BadRow]]:
        for number, row in enumerate(source.sets["train"], start=1):
            yield None, Record("imdb", number, dict(row))

    path = named_sources.packaged_reviews_path()
    facts = {"name": "imdb", "sha256": _scan(path).sha256, "bytes": path.stat().st_size}
    return _Origin("imdb", len(source.sets["train"]), rows(), facts)


def _file_origin(file: SourceFile, config: BuildConfig) -> _Origin:
    try:
        scan = _scan(file.path)
        encoding = _encoding(file, config)
    except OSError as error:
        raise DataError(
            f"data: {file.name} must be readable; got {error.strerror or error}. "
            "Check its permissions."
        ) from error
    facts: dict[str, Any] = {
        "name": file.name,
        "sha256": scan.sha256,
        "bytes": file.path.stat().st_size,
    }
    if encoding:
        facts["encoding"] = encoding
    options = config.read_options(encoding or "utf-8")
    required = config.layout.required(config.task)
    if config.group_column:
        required[config.group_column] = "--group-column"
    rows = ((file.split, row) for row in read_any_rows(file, config.task, options, required))
    size = _parquet_rows(file) if file.path.suffix.lower() == ".parquet" else scan.lines
    return _Origin(file.name, size, rows, facts)


def _encoding(file: SourceFile, config: BuildConfig) -> str | None:
    if file.path.suffix.lower() == ".parquet":
        return None
    if config.encoding != AUTO:
        return config.encoding
    try:
        return detect_encoding(file.path, file.name)
    except DataError:
        if config.bad_rows == "stop":
            raise
        return "utf-8"  # and rows that are not are rejected one by one


class _Scan(NamedTuple):
    sha256: str
    lines: int


def _scan(path: Path) -> _Scan:
    digest, lines = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            lines += chunk.count(b"\n")
    return _Scan(digest.hexdigest(), lines)


def _parquet_rows(file: SourceFile) -> int | None:
    import pyarrow
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(file.path).num_rows)
    except (pyarrow.ArrowException, OSError):
        return None  # the reader says what is wrong with it


class _NewNames(dict[str, str]):
    """New names of labels, which remember the labels that were looked up."""

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__(names)
        self._seen: set[str] = set()

    def get(self, label: str, default: Any = None) -> Any:
        if label in self:
            self._seen.add(label)
        return super().get(label, default)

    def unused(self) -> list[str]:
        """Returns the labels that were never looked up."""
        return [label for label in self if label not in self._seen]


class _Reader:
    """Turns records into rows of the task and puts them into the store."""

    def __init__(self, config: BuildConfig, store: Store) -> None:
        self._config = config
        self.new_names = _NewNames(config.labels)
        self._layout = dataclasses.replace(config.layout, labels=self.new_names)
        self._store = store
        self.repairs: Counter[str] = Counter()
        self.examples: list[dict[str, Any]] = []

    def take(self, split: str | None, record: Record | BadRow) -> None:
        own = split if split in ("validation", "test") else None
        if isinstance(record, BadRow):
            if self._config.bad_rows == "stop":
                error = record.error()
                raise DataError(f"{error} Or use --bad-rows reject.")
            self._reject(own, record, "unreadable", record.problem, record.content)
            return
        try:
            checked = task_row(self._config.task, record.fields, self._layout)
            row = self._repaired(record, checked)
            group = self._group(record)
        except RowProblem as error:
            # Rows without a text or a label are found in any data; the others say that
            # the file is not what it is taken for.
            if error.reason == "invalid" and self._config.bad_rows == "stop":
                message = BadRow(record.file, record.row, error.problem, error.remedy, None).error()
                raise DataError(f"{message} Or use --bad-rows reject.") from error
            self._reject(own, record, error.reason, error.problem, record.fields)
            return
        self._add(own, record, row, group)

    def _reject(
        self, split: str | None, record: Record | BadRow, reason: str, detail: str, content: Any
    ) -> None:
        body = content if _is_plain(content) else repr(content)
        self._store.add(record.file, record.row, split, body, reason=reason, detail=detail)

    def _repaired(self, record: Record, checked: TaskRow) -> dict[str, Any]:
        for kind in checked.repairs:
            self._note(record, kind, record.fields, checked.row)
        if not self._config.repair:
            return checked.row
        row = repair_row(self._config.task, checked.row)
        if row is None:
            return checked.row
        self._note(record, "characters repaired", checked.row, row)
        return row

    def _note(self, record: Record, kind: str, before: Any, after: dict[str, Any]) -> None:
        if sum(example["kind"] == kind for example in self.examples) < _EXAMPLES:
            old, new = _first_difference(before, after)
            place = {"file": record.file, "row": record.row, "kind": kind}
            self.examples.append({**place, "before": old, "after": new})
        self.repairs[kind] += 1

    def _group(self, record: Record) -> str | None:
        column = self._config.group_column
        if column is None:
            return None
        value = record.fields.get(column)
        if value is None or value != value or not str(value).strip():
            raise RowProblem(
                "invalid",
                f"a row must have a value in the group column {column!r}; got none",
                "Add it, or leave --group-column out.",
            )
        return str(value).strip()

    def _add(
        self, split: str | None, record: Record, row: dict[str, Any], group: str | None
    ) -> None:
        config = self._config
        text = compared_text(config.task, row)
        words = len(text.split())
        reason = detail = None
        if words < config.min_words:
            reason, detail = "too_short", f"{words} words, fewer than {config.min_words}"
        elif config.max_words is not None and words > config.max_words:
            reason, detail = "too_long", f"{words} words, more than {config.max_words}"
        own_group = _own_group(config.task, row) if group is None else group
        self._store.add(
            record.file,
            record.row,
            split,
            row,
            key=row_key(config.seed, config.task, row),
            answer=_answer(config.task, row),
            stratum=_stratum(config, row),
            grp=None if own_group is None else hashlib.sha256(own_group.encode()).digest()[:16],
            words=words,
            reason=reason,
            detail=detail,
        )


def compared_text(task: str, row: dict[str, Any]) -> str:
    """Returns the text of a row by which near-duplicates are found and lengths are counted."""
    if task == "token-classification":
        return " ".join(row["tokens"])
    if task == "question-answering":
        return str(row["context"])
    return str(row["source"] if task == "translation" else row["text"])


def row_key(seed: int, task: str, row: dict[str, Any]) -> bytes:
    """Returns the digest that is the same for rows with the same text.

    It is the first half of the number by which :mod:`fastattn.data.splits` orders texts.
    """
    text = compared_text(task, row)
    if task == "question-answering":
        text += f"\n{row['question']}"
    elif task == "translation":
        text += f"\n{row['target']}"
    return hashlib.sha256(f"{seed}:{text_key(text)}".encode()).digest()[:16]


def _own_group(task: str, row: dict[str, Any]) -> str | None:
    """What must not be in two splits beside the row itself: a context, a source sentence."""
    return (
        text_key(compared_text(task, row))
        if task in ("question-answering", "translation")
        else None
    )


def _answer(task: str, row: dict[str, Any]) -> str:
    """What a row says of its text; two rows of a text that differ in it contradict each other."""
    if task in ("masked-lm", "translation"):
        return ""
    column = {
        "classification": "label",
        "multilabel": "labels",
        "token-classification": "tags",
        "question-answering": "answers",
    }
    value = row[column[task]]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _stratum(config: BuildConfig, row: dict[str, Any]) -> str:
    """The classes by which splits are stratified; of several, the rarest will be chosen."""
    if config.task == "classification":
        return str(row["label"])
    if config.task == "token-classification":
        tags = set(row["tags"])
        kinds = tags if config.plain_tags else {tag[2:] for tag in tags if tag != "O"}
        return SEPARATOR.join(sorted(kinds))
    if config.task == "multilabel":
        return SEPARATOR.join(row["labels"])
    if config.task == "question-answering":
        return "answer" if row["answers"]["text"] else "no answer"
    return ""


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _first_difference(before: Any, after: dict[str, Any]) -> tuple[str, str]:
    """The texts around the first place in which a row and its repaired form differ."""
    for column, new in after.items():
        old = before.get(column, new) if isinstance(before, dict) else new
        if old != new:
            a, b = _as_text(old), _as_text(new)
            same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
            start = max(0, same - 20)
            return a[start : start + 60], b[start : start + 60]
    return "", ""


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable) and all(isinstance(x, str) for x in value):
        return " ".join(value)
    return json.dumps(value, ensure_ascii=False)
