"""Errors of a disk, as the libraries that write to it put them."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastattn import disk


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may be larger than 64 KiB, which writers meet like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_bytes(path: Path) -> None:
    path.write_bytes(b"x" * 2**20)


def write_table(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE texts (content)")
        database.execute("INSERT INTO texts VALUES (?)", ["x" * 2**20])


@pytest.mark.parametrize(
    "write",
    [
        write_bytes,
        write_table,
        lambda path: torch.save(torch.zeros(2**18), path),
        lambda path: save_file({"weight": torch.zeros(2**18)}, path),
    ],
    ids=["bytes", "sqlite", "torch", "safetensors"],
)
def test_a_disk_that_takes_no_more(
    small_files: None, tmp_path: Path, write: Callable[[Path], None]
) -> None:
    with pytest.raises(Exception) as caught:  # each library has a class of its own
        write(tmp_path / "file")
    assert disk.refusal(caught.value), caught.value


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory"),
        RuntimeError("size mismatch (os error 2)"),
        sqlite3.OperationalError("database is locked"),
    ],
)
def test_other_errors_are_not_the_disks(error: Exception) -> None:
    assert disk.refusal(error) is None


def test_trying_leaves_nothing(tmp_path: Path) -> None:
    assert disk.why_not_writable(tmp_path / "a" / "b") is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    why = disk.why_not_writable(tmp_path / "file" / "b")
    assert why == f"Not a directory at {tmp_path / 'file'}"
