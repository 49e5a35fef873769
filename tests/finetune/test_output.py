"""The output folder: nothing of the user's is lost."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from fastattn.finetune.output import OutputFolder, choose_folder


def make_checkpoint(folder: Path, step: int, written: int | None = None) -> Path:
    """A checkpoint of which so many characters of the last file were written; None: all of them."""
    checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    state = json.dumps({"global_step": step, "log_history": []}, indent=2)
    (checkpoint / "trainer_state.json").write_text(state[:written], encoding="utf-8")
    return checkpoint


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "metrics.json", "run.json", "config.json"]
)
def test_results_are_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"output must be .* which holds {name}. Choose another"):
        OutputFolder(tmp_path).check_free(overwrite=False)
    OutputFolder(tmp_path).check_free(overwrite=True)


def test_other_files_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    OutputFolder(tmp_path).check_free(overwrite=False)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"output must be a folder that can be written to; got"):
        OutputFolder(tmp_path / "file" / "run").check_free(overwrite=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_checking_makes_nothing(tmp_path: Path) -> None:
    OutputFolder(tmp_path / "a" / "b").check_free(overwrite=False)
    assert not list(tmp_path.iterdir())


def test_saving_replaces_what_the_run_before_wrote_and_nothing_else(tmp_path: Path) -> None:
    for name in ("model.safetensors", "old.json", "mine.txt"):
        (tmp_path / name).write_text("before", encoding="utf-8")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.touch()

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_text("after", encoding="utf-8")

    names = OutputFolder(tmp_path).save(write, ["old.json", f"../{outside.name}", "gone.json"])
    assert names == ["model.safetensors"]
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {
        "model.safetensors": "after",
        "mine.txt": "before",
    }
    assert outside.exists()


def test_saving_that_fails_leaves_the_model_before(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("before", encoding="utf-8")

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        OutputFolder(tmp_path).save(write, [])
    assert (tmp_path / "model.safetensors").read_text(encoding="utf-8") == "before"


def test_starting_afresh_drops_checkpoints_and_only_those(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 4)
    (tmp_path / "checkpoints" / "best").mkdir()
    OutputFolder(tmp_path).start(resume=True)
    assert OutputFolder(tmp_path).last_checkpoint() is not None
    OutputFolder(tmp_path).start(resume=False)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["best"]


def test_the_last_whole_checkpoint_is_resumed_from(tmp_path: Path) -> None:
    expected = make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 9)
    (make_checkpoint(tmp_path, 11) / "trainer_state.json").unlink()
    for step, written in ((12, 0), (13, 20)):  # killed in the middle of that file
        make_checkpoint(tmp_path, step, written)
    assert OutputFolder(tmp_path).check_resumable({"seed": 0}, set()) == expected


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output must hold a checkpoint to resume from; got"):
        OutputFolder(tmp_path).check_resumable({}, set())


def test_a_run_is_resumed_with_its_settings(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 1)
    run = {"settings": {"seed": 0, "epochs": 1}}
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    folder = OutputFolder(tmp_path)
    folder.check_resumable({"seed": 0, "epochs": 2}, {"epochs"})
    with pytest.raises(ValueError, match=r"seed must be 0, as in the run to be resumed .* got 1"):
        folder.check_resumable({"seed": 1, "epochs": 1}, {"epochs"})


def test_a_broken_run_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    assert OutputFolder(tmp_path).read_run() == {}


def test_the_default_folder_is_a_free_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_folder(None, resume=False).path == Path("runs/finetune-1")
    Path("runs/finetune-1").mkdir(parents=True)
    assert choose_folder(None, resume=False).path == Path("runs/finetune-2")
    assert choose_folder(None, resume=True).path == Path("runs/finetune-1")


def test_a_disk_without_room_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(tmp_path, 2)  # 51 bytes, which a new run drops
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5_000_000))
    folder = OutputFolder(tmp_path)
    folder.check_room(5_000_040)
    with pytest.raises(ValueError, match=r"for a checkpoint and the model, 7 MB; got .* with 5 MB"):
        folder.check_room(7_000_000)


def test_a_disk_that_becomes_full_is_named(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    with (
        pytest.raises(ValueError, match=r"room for the run; got .* \(No space left on device\)"),
        folder.writing(),
        open("/dev/full", "w") as full,
    ):
        full.write("x")
    make_checkpoint(tmp_path, 2)
    with pytest.raises(ValueError, match=r"checkpoint-2 is whole: .* --resume"), folder.writing():
        raise OSError(errno.ENOSPC, "no space")
    with pytest.raises(FileNotFoundError), folder.writing():
        (tmp_path / "none").read_text()
