"""The folder that ``fastattn data build`` makes, for those who read it.

train.jsonl, validation.jsonl, test.jsonl (or .parquet)   the rows, see fastattn.data.tasks
dataset.json     task, label names, counts, settings, sources with their hashes
report.html, report.json    what was found and done
rejects.jsonl    every row that is in no split: file, row, reason, detail, content
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastattn.data.readers import find_files, read_any_rows, row_error, strict
from fastattn.data.tasks import TASKS, Layout, RowProblem, task_row
from fastattn.errors import DataError

DATASET_FILE = "dataset.json"
REPORT_FILE = "report.json"
REPORT_PAGE = "report.html"
REJECTS_FILE = "rejects.jsonl"
FORMAT = "fastattn-dataset"
VERSION = 1
# Of the parts of report.json, those that are shown to people.
_SHOWN: dict[str, type] = {
    **{"task": str, "rows_read": int, "splits": dict, "rejected": dict, "labels": dict},
    **{"near_duplicates": dict, "padding": dict, "warnings": list},
}


def is_built(folder: Path) -> bool:
    """Whether a folder is a data set that a build has made."""
    return _content(folder) is not None


def _content(folder: Path) -> dict[str, Any] | None:
    """What dataset.json holds, None if there is none of its kind."""
    try:
        content = json.loads((folder / DATASET_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def read_description(folder: str | Path) -> dict[str, Any]:
    """Returns what dataset.json holds.

    Raises:
        DataError: the folder is no built data set, one of a later version, or a damaged one.
    """
    folder = Path(folder).expanduser()
    content = _content(folder)
    if content is None:
        raise DataError(
            f"data: the folder must be one that `fastattn data build` made; got {str(folder)!r}, "
            f"which has no {DATASET_FILE} of its kind. Build it first."
        )
    if content.get("version") == VERSION and not _is_whole(content):
        raise DataError(
            f"data: {DATASET_FILE} must be as the build wrote it; got one in {str(folder)!r} that "
            "lacks its task, names of labels or files. Build the data set again."
        )
    if content.get("version") != VERSION:
        raise DataError(
            f"data: {DATASET_FILE} must be of version {VERSION}; got {content.get('version')!r} in "
            f"{str(folder)!r}. Use a newer fastattn, or build the data set again."
        )
    return content


def _is_whole(content: dict[str, Any]) -> bool:
    files = content.get("files")
    return (
        content.get("task") in TASKS
        and isinstance(content.get("label_names"), list)
        and isinstance(files, dict)
        and all(isinstance(name, str) for name in files.values())
    )


def read_report(folder: str | Path) -> dict[str, Any]:
    """Returns what report.json holds.

    Raises:
        DataError: it is not there, or damaged.
    """
    path = Path(folder).expanduser() / REPORT_FILE
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(report, dict) or not all(
            isinstance(report.get(name), kind) for name, kind in _SHOWN.items()
        ):
            raise ValueError("one that lacks parts")
    except (OSError, ValueError) as error:
        raise DataError(
            f"data: the data set {str(folder)!r} must hold its {REPORT_FILE}; got {error}. "
            "Build it again."
        ) from error
    return dict(report)


def read_split(folder: str | Path, split: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a split of a built data set, exactly and in their order.

    Raises:
        DataError: the data set has no such split, or a row of it is not what the task needs, as
            where somebody has edited it.
    """
    content = read_description(folder)
    if split not in content["files"]:
        raise DataError(
            f"data: the data set {str(folder)!r} must have a {split} split; got "
            f"{', '.join(content['files'])}. Build it again, with `fastattn data build "
            f"--{split}-size`."
        )
    layout = Layout(plain_tags=content.get("plain_tags", False))
    for file in find_files(Path(folder).expanduser() / content["files"][split]):
        for record in strict(read_any_rows(file, content["task"])):
            try:
                task_row(content["task"], record.fields, layout)
            except RowProblem as error:
                raise row_error(record.file, record.row, error.problem, error.remedy) from error
            yield record.fields
