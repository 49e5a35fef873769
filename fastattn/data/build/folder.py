"""The output folder: it appears whole, or not at all.

Everything is written into ``.NAME.partial`` beside it, which is renamed at the end. A build that is
killed leaves that folder behind, and the next build to the same place removes it; a lock keeps two
builds from sharing it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastattn import disk
from fastattn.data.built import (
    DATASET_FILE,
    REJECTS_FILE,
    REPORT_FILE,
    REPORT_PAGE,
    is_built,
    read_description,
)
from fastattn.errors import DataError

_OWN = {DATASET_FILE, REPORT_FILE, REPORT_PAGE, REJECTS_FILE}
WORK = "work"  # the working table and other files that are gone in the end


def recover(output: Path) -> None:
    """Puts back a data set that was being replaced at the moment its build was killed."""
    before = _before(output)
    with _looking_at(output):
        if before.is_dir() and not output.exists():
            before.rename(output)


def _before(output: Path) -> Path:
    output = output.absolute()
    return output.with_name(f".{output.name}.before")


def check_output(output: Path, overwrite: bool) -> None:
    """Raises a DataError unless a build may write there; writes nothing."""
    with _looking_at(output):
        _check_output(output, overwrite)


@contextmanager
def _looking_at(output: Path) -> Iterator[None]:
    """Says what is wrong with a name that is too long, or a place that may not be looked at."""
    try:
        yield
    except OSError as error:
        raise _not_writable(output, error) from error


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise DataError(
            f"data build: output must be a folder; got {output}, which is something else. "
            "Choose another with --output."
        )
    if not output.exists() or not any(output.iterdir()):
        return
    if not is_built(output):
        raise DataError(
            f"data build: output must be a new or empty folder; got {output}, which holds files "
            "that no build has written. Choose another with --output."
        )
    if not overwrite:
        raise DataError(
            f"data build: output must be a new or empty folder; got {output}, which holds a data "
            "set. Choose another with --output, or replace it with --overwrite."
        )
    foreign = sorted({entry.name for entry in output.iterdir()} - _own_names(output))
    if foreign:
        raise DataError(
            f"data build: output must hold nothing but a data set to be replaced; got {output} "
            f"with {', '.join(foreign[:5])}. Move that away, or choose another folder."
        )


def check_no_source_inside(output: Path, sources: Sequence[Path]) -> None:
    """Raises a DataError if a file that is read lies in the folder that is to be replaced."""
    folder = output.resolve()
    for source in sources:
        if output.is_dir() and source.resolve().parent == folder:
            raise DataError(
                f"data build: output must be another folder than that of a source; got {output}, "
                f"whose {source.name} would be gone. Choose another with --output."
            )


def _own_names(output: Path) -> set[str]:
    return _OWN | set(read_description(output)["files"].values())


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Yields the folder to write to. Without an exception it becomes the output folder.

    Raises:
        DataError: nothing can be written there, the disk is full, or another build is at work.
    """
    output = output.absolute()
    folder = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise _not_writable(output, error) from error
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"data build: output must be written by one build at a time; got {output}, where "
                "another is at work. Wait for it, or choose another folder."
            ) from None
        try:
            _empty(folder)  # what a killed build has left
            (folder / WORK).mkdir()
            yield folder
            shutil.rmtree(folder / WORK)
            _publish(folder, output)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if disk.refusal(error):
                raise _not_writable(output, error) from error
            raise
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _publish(folder: Path, output: Path) -> None:
    """Puts the folder in the place of the output."""
    for file in folder.iterdir():
        _to_disk(file)
    _to_disk(folder)
    before = _before(output)
    if output.exists() and before.exists():
        shutil.rmtree(before)
    try:
        if output.exists():
            output.rename(before)
        folder.rename(output)
    except BaseException:  # also an interruption
        if before.exists() and not output.exists():
            before.rename(output)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _not_writable(output: Path, error: BaseException) -> DataError:
    why = getattr(error, "strerror", None) or error
    return DataError(
        f"data build: output must be a folder that can be written to; got {output} ({why}). "
        "Nothing was written. Make room, or choose another with --output."
    )
