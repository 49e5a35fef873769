"""What the names of files and folders say about the rows in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastattn.data.readers import find_files, read_rows
from fastattn.errors import DataError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"text of {name}", encoding="utf-8")
    return root


def found(root: Path, *names: str) -> list[tuple[str, str | None, str | None]]:
    folder = make(root / "data", *names)
    return [(file.name, file.split, file.label) for file in find_files(folder)]


def test_a_file_is_named_for_its_split(tmp_path: Path) -> None:
    path = make(tmp_path, "dev.csv") / "dev.csv"
    assert find_files(path)[0].split == "validation"
    assert find_files(path, "test")[0].split == "test"


def test_files_of_splits(tmp_path: Path) -> None:
    assert found(tmp_path, "train.csv", "Val.jsonl", "test.txt", "extra.csv", "README.txt") == [
        ("data/Val.jsonl", "validation", None),
        ("data/test.txt", "test", None),
        ("data/train.csv", "train", None),
    ]


def test_parts_of_splits_as_the_hub_has_them(tmp_path: Path) -> None:
    names = ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-0-of-1.jsonl")
    assert found(tmp_path, *names) == [
        ("data/test-0-of-1.jsonl", "test", None),
        ("data/train-00000-of-00002.parquet", "train", None),
        ("data/train-00001-of-00002.parquet", "train", None),
    ]


@pytest.mark.parametrize("other", ["train.tsv", "training.csv", "train-0-of-1.csv"])
def test_two_files_of_one_split(tmp_path: Path, other: str) -> None:
    with pytest.raises(DataError, match=r"data must hold at most one train file; got .*Leave one"):
        found(tmp_path, "train.csv", other)


def test_other_files_have_no_split(tmp_path: Path) -> None:
    assert found(tmp_path, "b.csv", "a.jsonl", ".hidden.csv", "LICENSE.txt", "notes.md") == [
        ("data/a.jsonl", None, None),
        ("data/b.csv", None, None),
    ]


def test_text_files_are_read_whole_with_their_class(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", "pos/1.txt", "neg/2.txt")
    (folder / "pos/1.txt").write_text("two\nlines\n", encoding="utf-8")
    assert [(row.file, row.fields) for row in read_rows(folder)] == [
        ("data/neg/2.txt", {"text": "text of neg/2.txt", "label": "neg"}),
        ("data/pos/1.txt", {"text": "two\nlines", "label": "pos"}),
    ]


def test_text_files_alone_have_no_label(tmp_path: Path) -> None:
    assert found(tmp_path, "2.txt", "1.txt") == [
        ("data/1.txt", None, None),
        ("data/2.txt", None, None),
    ]


def test_a_folder_without_rows(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", "picture.png", "sub/notes.md")
    with pytest.raises(DataError, match=r"must hold files with rows .*; got picture.png, sub. Che"):
        find_files(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"got an empty folder"):
        find_files(tmp_path / "none")


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be a file or folder that exists; got '.*none.csv'"):
        find_files(tmp_path / "none.csv")


def test_half_of_the_folders_named_for_a_split(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", "train/pos/1.txt", "pos/2.txt")
    with pytest.raises(DataError, match=r"either all or no files .* got data/train/pos/1.txt and"):
        find_files(folder)


def test_folders_are_splits_and_classes(tmp_path: Path) -> None:
    names = ("train/pos/1.txt", "train/neg/a/2.txt", "test/pos/3.txt", "README.txt")
    assert found(tmp_path, *names) == [
        ("data/test/pos/3.txt", "test", "pos"),
        ("data/train/neg/a/2.txt", "train", "neg"),
        ("data/train/pos/1.txt", "train", "pos"),
    ]
