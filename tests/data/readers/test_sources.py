"""What the names of files and folders say about the rows in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fastattn.data.readers import find_files, read_rows
from fastattn.data.readers.sources import unread_files
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


def test_a_part_of_a_split_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data must hold all parts of its train split, .* got "):
        found(tmp_path, "train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl")
    (tmp_path / "data" / "train-00000-of-00003.jsonl").unlink()
    with pytest.raises(DataError, match=r"got train-00002-of-00003.jsonl. Add what is missing"):
        found(tmp_path)
    (tmp_path / "data" / "train-00002-of-00003.jsonl").unlink()
    assert len(found(tmp_path, "test-1-of-2.csv", "test-2-of-2.csv", "train-0-of-1.csv")) == 3


def test_a_split_in_a_folder_beside_one_in_a_file(tmp_path: Path) -> None:
    message = r"must be files, or folders, but not both; got train.csv and test/. Put them on one"
    with pytest.raises(DataError, match=message):
        found(tmp_path, "train.csv", "test/part.csv")
    (tmp_path / "data/test/part.csv").unlink()
    assert found(tmp_path) == [("data/train.csv", "train", None)]


def test_files_in_other_folders_are_told_of(tmp_path: Path) -> None:
    names = ("train/x.csv", "extra/y.csv", "extra/.hidden/z.csv", "extra/notes.md")
    folder = make(tmp_path / "data", *names)
    assert unread_files(folder, find_files(folder)) == ["extra/y.csv"]
    folder = make(tmp_path / "texts", "pos/1.txt", "neg/2.TXT", "neg/3.csv")
    assert [file.name for file in find_files(folder)] == ["texts/neg/2.TXT", "texts/pos/1.txt"]
    assert unread_files(folder, find_files(folder)) == ["neg/3.csv"]


def test_a_data_set_may_be_called_so(tmp_path: Path) -> None:
    assert found(tmp_path, "dataset.csv", "dataset.json", "README.txt") == [
        ("data/dataset.csv", None, None)
    ]


def test_links_that_lead_nowhere_or_around(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", "pos/1.txt", "neg/2.txt")
    (folder / "pos/dead.txt").symlink_to(tmp_path / "none")
    with pytest.raises(DataError, match=r"got .*dead.txt, a link to nothing. Put the file in its"):
        find_files(folder)
    (folder / "pos/dead.txt").unlink()
    (folder / "pos/loop").symlink_to(folder)
    with pytest.raises(DataError, match=r"must hold no link to a folder; got .*loop. Put the"):
        find_files(folder)
    (folder / "pos/loop").unlink()
    (folder / "more").symlink_to(folder / "pos")
    assert [file.label for file in find_files(folder)] == ["more", "neg", "pos"]
    (folder / "test.csv").symlink_to(tmp_path / "none")
    make(folder, "train.csv")
    with pytest.raises(DataError, match=r"got .*test.csv, a link to nothing"):
        find_files(folder)


def test_a_folder_of_a_class_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "data", "pos/1.txt", "neg/deep/2.txt")
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"data must be readable; got Permission denied. Check its"):
        find_files(folder)


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
