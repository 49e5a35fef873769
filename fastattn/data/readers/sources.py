"""Which files a source is made of, and what their names and folders say about their rows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fastattn.errors import DataError

# Names under which the sets of a folder, or of a data set of the Hub, are looked for.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
# What ends the names of the parts of a split, as the Hub has them: train-00000-of-00002.parquet.
_PART = re.compile(r"-(\d+)-of-(\d+)$")
TABLES = (".csv", ".tsv", ".tab")
JSON_LINES = (".jsonl", ".ndjson")
CONLL = (".conll", ".iob", ".iob2", ".bio")
# A text file is CoNLL, or lines of text: the task decides.
SUFFIXES = (*TABLES, *JSON_LINES, ".json", ".parquet", *CONLL, ".txt")


class SourceFile(NamedTuple):
    """One file with rows."""

    path: Path
    name: str  # for messages and reports: the same on every machine
    split: str | None = None  # "train", "validation" or "test" if its name or folder says so
    label: str | None = None  # the folder of a text file, where folders are classes
    whole_file: bool = False  # the file is one text


def split_of(name: str) -> str | None:
    """Returns the split that a name stands for, None if it stands for none."""
    name = _PART.sub("", name.lower())
    return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


def find_files(source: str | Path, split: str | None = None) -> list[SourceFile]:
    """Returns the files of a source, in alphabetical order.

    Args:
        source: a file, or a folder. In a folder, files and folders named ``train``,
            ``validation`` (``valid``, ``val``, ``dev``) or ``test`` are those splits (also in
            parts, as in ``train-00000-of-00002.parquet``), and a folder of text files is a class of
            its name, as in ``train/pos/7.txt``. Text files beside no other data are texts without a
            label. Names that begin with a dot are not read, nor are files of other kinds.
        split: what all of it is, if the caller knows.

    Raises:
        DataError: it is not there or may not be read, there is nothing in it to read, the splits
            are unclear or lack a part, or there are links that would be left out.
    """
    try:
        return _find(source, split)
    except OSError as error:
        raise DataError(
            f"data: {source} must be readable; got {error.strerror or error}. "
            "Check its permissions."
        ) from error


def _find(source: str | Path, split: str | None) -> list[SourceFile]:
    path = Path(source).expanduser()
    if path.is_file():
        _check_suffix(path)
        return [SourceFile(path, path.name, split or split_of(path.stem))]
    if not path.is_dir():
        raise DataError(
            f"data: a source must be a file or folder that exists; got {str(source)!r}. "
            "Check the path."
        )
    found = list(_in_folder(path, path.resolve().name, split))
    if not found:
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty folder"
        raise DataError(
            f"data: the folder {source} must hold files with rows ({', '.join(SUFFIXES)}); got "
            f"{there}. Check that it is the right folder."
        )
    _check_one_meaning(found, source)
    return found


def unread_files(source: str | Path, found: Sequence[SourceFile]) -> list[str]:
    """Returns the names of files with rows that lie in a folder, or in folders of it, unread."""
    path = Path(source).expanduser()
    read = {file.path for file in found}
    below = (file for _, files in _walk(path) for file in files) if path.is_dir() else ()
    return sorted(
        file.relative_to(path).as_posix()
        for file in below
        if file not in read and file.is_file() and _is_data(file)
    )


def _walk(
    folder: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[list[Path], list[Path]]]:
    """Yields the folders in a folder and its files, then those of its folders, but hidden ones."""
    for place, folders, files in os.walk(folder, onerror=onerror):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = [name for name in files if not name.startswith(".")]
        yield [Path(place, name) for name in folders], [Path(place, name) for name in visible]


def _all_texts(folder: Path) -> list[Path]:
    """Returns the text files of a folder and of its folders, in their order.

    Raises:
        OSError: one of the folders may not be read.
        DataError: there are links to folders or to nothing, which would be left out.
    """

    def refuse(error: OSError) -> None:
        raise error

    texts: list[Path] = []
    for folders, files in _walk(folder, refuse):
        for inner in folders:
            if inner.is_symlink():
                raise DataError(
                    f"data: a folder of texts must hold no link to a folder; got {inner}. Put the "
                    "texts in its place."
                )
        _check_links(files)
        texts += [file for file in files if file.suffix.lower() == ".txt" and file.is_file()]
    return sorted(texts)


def _check_links(files: Sequence[Path]) -> None:
    """Raises a DataError if a file with rows is a link to nothing."""
    for file in files:
        if file.is_symlink() and not file.exists() and _is_data(file):
            raise DataError(
                f"data: a file must be there to be read; got {file}, a link to nothing. Put the "
                "file in its place, or remove the link."
            )


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"data: a file must be one of {', '.join(SUFFIXES)}; got {path.name!r}. "
            "Convert it to one of these."
        )


def _in_folder(folder: Path, name: str, split: str | None) -> Iterator[SourceFile]:
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    _check_links(entries)
    files = [entry for entry in entries if entry.is_file() and _is_data(entry)]
    tables = [file for file in files if file.suffix.lower() != ".txt"]
    named = [file for file in files if split_of(file.stem)]
    _check_one_file_a_split(named, name)
    # Beside train.csv, a README.txt or labels.csv holds no rows.
    for file in named or tables:
        yield SourceFile(file, f"{name}/{file.name}", split or split_of(file.stem))
    if named or tables:
        if split is None:
            _check_no_split_beside((named or tables)[0], entries)
        return
    for file in files:
        yield SourceFile(file, f"{name}/{file.name}", split, whole_file=True)
    for entry in entries:
        if entry.is_dir():
            yield from _in_subfolder(entry, f"{name}/{entry.name}", split)


def _check_no_split_beside(file: Path, entries: list[Path]) -> None:
    """Raises a DataError where a folder is a split, and a file beside it is read instead."""
    for entry in entries:
        if entry.is_dir() and split_of(entry.name) and unread_files(entry, ()):
            raise DataError(
                f"data: the splits of {file.parent} must be files, or folders, but not both; got "
                f"{file.name} and {entry.name}/. Put them on one level, or give them one by one, "
                "as in `fastattn data build train=FILE test=FILE`."
            )


def _check_one_file_a_split(named: list[Path], folder: str) -> None:
    """Raises a DataError where it is not clear which file is a split."""
    of_splits: dict[str | None, list[Path]] = {}
    for file in named:
        of_splits.setdefault(split_of(file.stem), []).append(file)
    for split, files in of_splits.items():
        if len(files) > 1 and not all(_PART.search(file.stem) for file in files):
            raise DataError(
                f"data: {folder} must hold at most one {split} file; got "
                f"{', '.join(file.name for file in files)}. Leave one of them there, or number the "
                f"parts of one, as in {split}-00000-of-00002.jsonl."
            )
        _check_all_parts(split, files, folder)


def _check_all_parts(split: str | None, files: list[Path], folder: str) -> None:
    """Raises a DataError where a part of a split is not there."""
    parts = [match for file in files if (match := _PART.search(file.stem))]
    totals = {int(part[2]) for part in parts}
    numbers = sorted(int(part[1]) for part in parts)
    whole = [[*range(first, first + total)] for total in totals for first in (0, 1)]
    if parts and (len(totals) > 1 or numbers not in whole):
        raise DataError(
            f"data: {folder} must hold all parts of its {split} split, each once; got "
            f"{', '.join(file.name for file in files[:8])}. Add what is missing, or number anew "
            "what is there."
        )


def _in_subfolder(folder: Path, name: str, split: str | None) -> Iterator[SourceFile]:
    own = split_of(folder.name) if split is None else None
    if own:
        yield from _in_folder(folder, name, own)
        return
    for file in _all_texts(folder):
        inner = file.relative_to(folder).as_posix()
        yield SourceFile(file, f"{name}/{inner}", split, folder.name, whole_file=True)


# What people and programs put beside rows.
_NOT_ROWS = {
    ".txt": ("readme", "license", "licence", "notice"),
    ".json": ("dataset_info", "dataset"),
}


def _is_data(file: Path) -> bool:
    suffix = file.suffix.lower()
    return suffix in SUFFIXES and file.stem.lower() not in _NOT_ROWS.get(suffix, ())


def _check_one_meaning(files: list[SourceFile], source: str | Path) -> None:
    """Raises a DataError where some files are a split and others are not."""
    with_split = [file for file in files if file.split]
    without = [file for file in files if not file.split]
    if with_split and without:
        raise DataError(
            f"data: either all or no files of {source} must be named for a split; got "
            f"{with_split[0].name} and {without[0].name}. Name all of them so, or give the files "
            "one by one, as in `fastattn data build train=FILE test=FILE`."
        )
