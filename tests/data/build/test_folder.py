"""The output appears whole or not at all, and nothing of the user's is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastattn.data.build.folder import check_output, recover, staging
from fastattn.errors import DataError

from .conftest import Build, reviews, write_lines

COMMAND = [sys.executable, "-c", "from fastattn.cli import main; main()", "data", "build"]
QUICK = ["--quiet", "--suspects", "off"]


def test_a_folder_with_other_files_is_left_alone(built: Build, tmp_path: Path) -> None:
    rows = reviews(40)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds files that no build has written. Choose another"):
        built(rows, overwrite=True)
    assert (tmp_path / "out/notes.txt").read_text(encoding="utf-8") == "mine"
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match=r"output must be a folder; got .*file, which is something"):
        built(rows, "file", overwrite=True)


def test_a_data_set_is_replaced_when_asked_for(built: Build, tmp_path: Path) -> None:
    before = built(reviews(40)).files()
    with pytest.raises(DataError, match=r"holds a data set. .* or replace it with --overwrite"):
        built(reviews(50))
    (tmp_path / "out/mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match=r"with mine.txt. Move that away"):
        built(reviews(50), overwrite=True)
    (tmp_path / "out/mine.txt").unlink()
    with pytest.raises(DataError, match=r"row 1: a row must have a field 'text'"):
        built([{"x": 1}], overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    after = built(reviews(50), format="parquet", overwrite=True).files()
    assert "train.parquet" in after and "train.jsonl" not in after
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "out"}


def test_a_source_is_not_replaced(built: Build, tmp_path: Path) -> None:
    built(reviews(40))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for source in ("out", "out/train.jsonl", "link/train.jsonl"):
        message = r"must be another folder than that of a source; got .*, whose .*jsonl would be go"
        with pytest.raises(DataError, match=message):
            built([str(tmp_path / source)], overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("moment", [0, 1])
def test_an_interruption_while_a_data_set_is_replaced(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    before = built(reviews(40)).files()
    renames = []
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) - 1 == moment:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        built(reviews(50), overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "out"}


def test_a_name_that_is_too_long(built: Build) -> None:
    message = r"output must be a folder that can be written to; got .*xxx \(File name too long\)"
    with pytest.raises(DataError, match=message):
        built(reviews(40), "x" * 300)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A build of out that is reading its rows."""
    source = write_lines(tmp_path / "many.jsonl", reviews(30_000))
    command = [*COMMAND, str(source), "--output", str(tmp_path / "out"), *QUICK]
    # What a shell starts in the background ignores this signal, and so would its children.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, ours)
    until = time.monotonic() + 300
    while not (tmp_path / ".out.partial/work/rows.sqlite").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    assert process.stderr is not None
    with process.stderr:
        yield process
        process.kill()
        process.wait()


def test_a_killed_build_leaves_no_data_set(
    built: Build, running: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"one build at a time; got .* another is at work. Wait"):
        built(reviews(40))
    running.kill()
    running.wait()
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.partial").exists()
    built(reviews(40))
    assert {path.name for path in tmp_path.iterdir()} == {"many.jsonl", "rows.jsonl", "out"}


def test_an_interrupted_build_leaves_nothing(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    running.send_signal(signal.SIGINT)
    assert running.stderr is not None
    assert running.stderr.read().strip() == "Stopped."
    assert running.wait() == 130
    assert [path.name for path in tmp_path.iterdir()] == ["many.jsonl"]


def test_a_build_that_is_killed_while_it_replaces(built: Build, tmp_path: Path) -> None:
    output = tmp_path / "out"
    before = built(reviews(40)).files()
    output.rename(tmp_path / ".out.before")  # the moment between two renames
    recover(output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_an_error_at_the_end_keeps_the_old_data_set(built: Build, tmp_path: Path) -> None:
    output = tmp_path / "out"
    before = built(reviews(40)).files()
    with pytest.raises(RuntimeError), staging(output) as folder:
        (folder / "train.jsonl").write_text("half", encoding="utf-8")
        raise RuntimeError
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "out"}


def test_an_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    message = r"can be written to; got .*file/out \(.*\). Nothing was written. Make room"
    with pytest.raises(DataError, match=message), staging(tmp_path / "file" / "out"):
        pass


def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    try:
        (folder / "x").mkdir()
    except PermissionError:
        with pytest.raises(DataError, match=r"Permission denied"), staging(folder / "out"):
            pass
    else:
        pytest.skip("this user may write everywhere")


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    check_output(tmp_path, overwrite=False)
    check_output(tmp_path / "none", overwrite=False)


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of one megabyte, in a name space of its own where that needs no root."""
    unshare = shutil.which("unshare")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / "disk")]
    (tmp_path / "disk").mkdir()
    inside = [unshare or "", "--mount", "--map-root-user", "sh", "-c", '"$@"', "sh"]
    if not unshare or subprocess.run([*inside, *mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    source = write_lines(tmp_path / "many.jsonl", reviews(20_000))
    command = [*COMMAND, str(source), "--output", str(tmp_path / "disk/out"), *QUICK]
    script = ' "$@"; echo $?; ls -A "$DISK"'
    done = subprocess.run(
        [unshare, "--mount", "--map-root-user", "sh", "-c", f"{' '.join(mount)};{script}", "sh",
         *command],
        capture_output=True, text=True, env={**os.environ, "DISK": str(tmp_path / "disk")},
    )  # fmt: skip
    assert done.stdout.split() == ["2"], done.stderr
    assert "output must be a folder that can be written to" in done.stderr
    assert "Nothing was written. Make room" in done.stderr
