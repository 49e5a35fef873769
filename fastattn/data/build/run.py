"""One build, from the sources to the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import fastattn
from fastattn.data.build import near, padding, suspects
from fastattn.data.build.assign import SPLITS, Assigned, assign, read_columns
from fastattn.data.build.config import SUSPECTS_TASKS, BuildConfig
from fastattn.data.build.duplicates import check_ids, reject_duplicates
from fastattn.data.build.folder import WORK, check_output, recover, staging
from fastattn.data.build.ingest import Ingested, compared_text, ingest
from fastattn.data.build.output import (
    Written,
    count_labels,
    names_of,
    write_rejects,
    write_splits,
)
from fastattn.data.build.progress import Progress
from fastattn.data.build.report import make_report, write_report
from fastattn.data.build.store import Store
from fastattn.data.built import DATASET_FILE, FORMAT, VERSION
from fastattn.data.tasks import COLUMNS
from fastattn.errors import DataError


def build(config: BuildConfig) -> dict[str, Any]:
    """Builds a data set; returns its report as plain values, as in ``report.json``.

    The same sources and settings give the same files, byte for byte; the splits do not depend on
    the order of the rows either.

    Raises:
        DataError: a setting, a source or the output cannot be used; nothing is left behind.
        ImportError: a library of the ``data`` extra is missing.
    """
    config.check()
    require_libraries(config)
    count_tokens = padding.load_tokenizer(config.tokenizer)
    output = Path(config.output).expanduser()
    recover(output)
    check_output(output, config.overwrite)
    progress = Progress(config.progress)
    with staging(output) as folder, _store(folder / WORK / "rows.sqlite") as store:
        read = ingest(config, store, progress)
        if config.task == "question-answering":
            check_ids(store, config.bad_rows)
        reject_duplicates(store)
        _check_rows(store)
        doubts = _suspects(config, store, progress)
        found = _near_duplicates(config, store, folder / WORK, progress)
        columns = read_columns(store, store.count("reason IS NULL"))
        assigned = assign(config, store, columns, found)
        labels = count_labels(store, assigned)
        costs = _padding(config, store, assigned, count_tokens, progress)
        files, written = write_splits(config, store, assigned, labels["train"], folder, progress)
        write_rejects(store, folder)
        pairs = near.describe(store, columns.ids, found)
        report = make_report(config, store, assigned, read, written, doubts, costs, pairs)
        write_report(report, folder)
        _describe(config, folder, read, written, files, names_of(config, labels))
    return report


def require_libraries(config: BuildConfig) -> None:
    """Raises an ImportError that names what is missing for a build and how to get it."""
    import importlib.util

    needed = ["charset_normalizer", "ftfy", "jinja2", "numpy", "pyarrow"]
    if config.near_duplicates != "keep":
        needed.append("rensa")
    if _looks_at_labels(config):
        needed += ["cleanlab", "sklearn"]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"data build: {', '.join(missing)} must be installed; got none. "
            "Run `pip install 'fastattn[data]'`."
        )


def _looks_at_labels(config: BuildConfig) -> bool:
    return config.task in SUSPECTS_TASKS and config.suspects != "off"


@contextmanager
def _store(path: Path) -> Iterator[Store]:
    store = Store(path)
    try:
        yield store
    finally:
        store.close()


def _check_rows(store: Store) -> None:
    if store.count("reason IS NULL"):
        return
    reasons = ", ".join(
        f"{rows:,} {reason}"
        for reason, rows in store.query(
            "SELECT reason, count(*) FROM rows GROUP BY reason ORDER BY 2 DESC"
        )
    )
    first = next(store.query("SELECT file, row, detail FROM rows ORDER BY id LIMIT 1"), None)
    where = f"; the first is {first[0]}, row {first[1]}: {first[2]}" if first else ""
    raise DataError(
        "data build: the sources must hold at least one row that can be used; got "
        f"{reasons or 'no rows at all'}{where}. Check the files and the columns."
    )


def _suspects(config: BuildConfig, store: Store, progress: Progress) -> dict[str, Any] | None:
    if not _looks_at_labels(config):
        return None
    with progress.stage("labels"):
        return suspects.find_suspects(store, config.task, config.suspects == "drop")


def _near_duplicates(
    config: BuildConfig, store: Store, folder: Path, progress: Progress
) -> near.Found | None:
    if config.near_duplicates == "keep":
        return None
    num_rows = store.count("reason IS NULL")
    return near.find_near_duplicates(
        store, config.task, config.similarity, num_rows, folder, progress
    )


def _padding(
    config: BuildConfig,
    store: Store,
    assigned: Assigned,
    count_tokens: padding.CountTokens,
    progress: Progress,
) -> dict[str, Any]:
    is_train = assigned.splits == SPLITS.index("train")
    rows = (row for row, train in zip(store.kept(), is_train.tolist(), strict=True) if train)
    lengths: list[int] = []
    total = min(padding.MAX_ROWS, int(is_train.sum()))
    with progress.stage("tokens", total) as advance:
        sample = islice(rows, padding.MAX_ROWS)
        while batch := list(islice(sample, 1000)):
            pairs = [_pair(config.task, row.content()) for row in batch]
            lengths += count_tokens(pairs)
            advance(len(batch))
    return {
        "tokenizer": config.tokenizer,
        "max_length": config.max_length,
        **padding.measure(lengths, config.max_length, int(is_train.sum())),
    }


def _pair(task: str, row: dict[str, Any]) -> tuple[str, str | None]:
    text = compared_text(task, row)
    return (row["question"], text) if task == "question-answering" else (text, None)


def _describe(
    config: BuildConfig,
    folder: Path,
    read: Ingested,
    written: Written,
    files: dict[str, str],
    names: list[str],
) -> None:
    """Writes dataset.json, the sign that the folder is a data set."""
    marks = config.balance == "upsample" or config.augment > 0
    description = {
        "format": FORMAT,
        "version": VERSION,
        "fastattn": fastattn.__version__,
        "task": config.task,
        "columns": [*COLUMNS[config.task], *(["origin"] if marks else [])],
        "label_names": names,
        "plain_tags": config.plain_tags,
        "files": files,
        "counts": {
            split: {
                "rows": written.rows[split],
                "labels": dict(sorted(written.labels[split].items())),
            }
            for split in files
        },
        "settings": config.as_dict(),
        "sources": read.sources,
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (folder / DATASET_FILE).write_text(text, encoding="utf-8")
