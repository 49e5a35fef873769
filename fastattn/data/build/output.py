"""Writes the splits and the rejects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from fastattn.data.augment import variants
from fastattn.data.build.assign import SPLITS, Assigned
from fastattn.data.build.balance import Balance, marked
from fastattn.data.build.config import BuildConfig
from fastattn.data.build.ingest import SEPARATOR, row_key
from fastattn.data.build.progress import Progress
from fastattn.data.build.store import Store
from fastattn.data.built import REJECTS_FILE
from fastattn.data.tasks import label_names

_BATCH = 1_000


class Writer(Protocol):
    """Takes rows for a file."""

    def write(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class _JsonLines:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path, task: str, with_origin: bool) -> None:
        import pyarrow
        import pyarrow.parquet

        text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
        starts = pyarrow.list_(pyarrow.int64())
        columns = {
            "classification": {"text": text, "label": text},
            "multilabel": {"text": text, "labels": texts},
            "token-classification": {"tokens": texts, "tags": texts},
            "question-answering": {
                **{"id": text, "context": text, "question": text},
                "answers": pyarrow.struct({"text": texts, "answer_start": starts}),
            },
            "masked-lm": {"text": text},
            "translation": {"source": text, "target": text},
        }[task]
        if with_origin:
            columns["origin"] = text
        self._schema = pyarrow.schema(columns)
        self._table = pyarrow.Table
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._table.from_pylist(self._rows, self._schema))
            self._rows.clear()

    def close(self) -> None:
        self._flush()
        self._writer.close()


class Written:
    """What is in the splits."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.labels: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self.copies = 0
        self.augmented = 0


def count_labels(store: Store, assigned: Assigned) -> dict[str, Counter[str]]:
    """Returns how many rows of each split have each label (entity type, for tokens)."""
    combined: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    sql = "SELECT stratum FROM rows INDEXED BY by_key WHERE reason IS NULL ORDER BY key"
    for (stratum,), code in zip(store.query(sql), assigned.splits.tolist(), strict=True):
        combined[SPLITS[code]][stratum] += 1
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for split, strata in combined.items():
        for stratum, rows in strata.items():
            for label in filter(None, stratum.split(SEPARATOR)):
                counts[split][label] += rows
    return counts


def names_of(config: BuildConfig, counts: dict[str, Counter[str]]) -> list[str]:
    """Returns the names of the classes, or of the tags, in their order."""
    labels = set().union(*counts.values())
    if config.task in ("classification", "multilabel") or config.plain_tags:
        return label_names(labels)
    if config.task == "token-classification":
        return ["O", *(f"{begin}-{kind}" for kind in sorted(labels) for begin in "BI")]
    return []


def write_splits(
    config: BuildConfig,
    store: Store,
    assigned: Assigned,
    train_labels: Counter[str],
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, str], Written]:
    """Writes train, validation and test; returns their file names, and what is in them.

    Rows that balancing leaves out are rejected ("balanced_away").
    """
    balance = Balance(config.balance, train_labels)
    marks = config.balance == "upsample" or config.augment > 0
    files = {
        split: f"{split}.{config.format}"
        for code, split in enumerate(SPLITS)
        if (assigned.splits == code).any()
    }
    writers = {split: _writer(folder / name, config, marks) for split, name in files.items()}
    written = Written()
    away: list[tuple[int, str, str]] = []
    try:
        with progress.stage("writing", len(assigned.ids)) as advance:
            for kept, code in zip(store.kept(), assigned.splits.tolist(), strict=True):
                split = SPLITS[code]
                times = balance.copies(kept.stratum) if split == "train" else 1
                if not times:
                    detail = f"class {kept.stratum!r} has {balance.target:,} rows already"
                    away.append((kept.id, "balanced_away", detail))
                row = kept.content()
                for copy in range(times):
                    origin = "copy" if copy else "original"
                    writers[split].write(marked(row, origin) if marks else row)
                written.copies += max(0, times - 1)
                written.rows[split] += times
                for label in filter(None, kept.stratum.split(SEPARATOR)):
                    written.labels[split][label] += times
                if split == "train" and times and config.augment:
                    for altered in _augmented(config, store, row, kept.key):
                        writers[split].write(marked(altered, "augmented"))
                        written.augmented += 1
                        written.rows[split] += 1
                advance(1)
    finally:
        for writer in writers.values():
            writer.close()
    store.reject(away)
    return files, written


def _writer(path: Path, config: BuildConfig, marks: bool) -> Writer:
    return _JsonLines(path) if config.format == "jsonl" else _Parquet(path, config.task, marks)


def _augmented(
    config: BuildConfig, store: Store, row: dict[str, Any], key: bytes
) -> Iterator[dict[str, Any]]:
    """Altered copies of a row that are no row of the data themselves."""
    seen = {key}
    for text in variants(row["text"], key, config.augment):
        altered = {**row, "text": text}
        own = row_key(config.seed, config.task, altered)
        if own not in seen and not store.count("key = ?1 AND reason IS NULL", own):
            seen.add(own)
            yield altered


def write_rejects(store: Store, folder: Path) -> None:
    """Writes every rejected row with its reason, in the order of reading."""
    sql = "SELECT file, row, reason, detail, body FROM rows WHERE reason IS NOT NULL ORDER BY id"
    with (folder / REJECTS_FILE).open("w", encoding="utf-8", newline="\n") as out:
        for file, row, reason, detail, body in store.query(sql):
            fields = {"file": file, "row": row, "reason": reason, "detail": detail}
            content = {**fields, "content": json.loads(body)}
            out.write(json.dumps(content, ensure_ascii=False) + "\n")
