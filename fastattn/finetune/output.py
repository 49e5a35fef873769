"""The output folder: what is written there, and that nothing else is touched.

run.json                 command, settings, versions, machine, split; written first
checkpoints/             the Trainer's own checkpoints, for --resume
tensorboard/             curves in TensorBoard's format, if it is installed
config.json, model.safetensors, tokenizer files: the model, whole or not there at all
curves.png               loss, metric, learning rate and speed by step
README.md                the model card; one that this command did not write is left alone
metrics.json             every figure of the run; written last
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastattn import disk

RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
CURVES_FILE = "curves.png"
DATABASE = "search.db"
SEARCH_FILE = "search.json"
TRIALS = "trials"
_STAGING = ".fastattn-partial"  # the model is written here and moved when it is whole

# Any of these shows that a folder holds a run or a model already.
_RESULTS = (
    *(RUN_FILE, METRICS_FILE, CHECKPOINTS, "config.json", "model.safetensors"),
    *("model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    *(CURVES_FILE, TENSORBOARD, DATABASE, SEARCH_FILE),
)
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_DEFAULT_ROOT = "runs"


class OutputFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    def results(self) -> list[str]:
        """Returns the names in the folder that a run would overwrite."""
        return [name for name in _RESULTS if (self.path / name).exists()]

    def check_free(self, overwrite: bool) -> None:
        """Raises a ValueError unless a run may write here; writes nothing."""
        _check_writable(self.path)
        found = self.results()
        if found and not overwrite:
            raise ValueError(
                "finetune: output must be a folder without a model or results in it; got "
                f"{self.path}, which holds {', '.join(found)}. Choose another folder with "
                "--output, continue that run with --resume, or replace it with --overwrite."
            )

    def check_room(self, num_bytes: int) -> None:
        """Raises a ValueError unless a run that starts afresh has room for ``num_bytes``."""
        dropped = [file for entry in self._checkpoint_folders() for file in entry.rglob("*")]
        room = disk.free_bytes(self.path) + sum(file.lstat().st_size for file in dropped)
        if room < num_bytes:
            raise ValueError(
                f"finetune: output must be on a disk with room for a checkpoint and the model, "
                f"{num_bytes / 1e6:,.0f} MB; got {self.path} with {room / 1e6:,.0f} MB. Make room, "
                "or choose another folder with --output."
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Says what to do where the disk refuses what is written in here.

        Raises:
            ValueError: it did.
        """
        try:
            yield
        except Exception as error:
            why = disk.refusal(error)
            if why is None:
                raise
            checkpoint = self.last_checkpoint()
            kept = (
                "There is no checkpoint yet."
                if checkpoint is None
                else f"{checkpoint.name} is whole: go on from it with --resume."
            )
            raise ValueError(
                f"finetune: output must be a folder with room for the run; got {self.path} "
                f"({why}). Make room, or choose another with --output. {kept}"
            ) from error

    def last_checkpoint(self) -> Path | None:
        """Returns the newest checkpoint that was written to its end."""
        # The Trainer writes this file last; without all of it the run was killed meanwhile.
        whole = [
            entry
            for entry in self._checkpoint_folders()
            if _read_json(entry / "trainer_state.json")
        ]
        return max(whole, key=lambda entry: int(entry.name.split("-")[1]), default=None)

    def _checkpoint_folders(self) -> list[Path]:
        """The folders of all checkpoints, whole or not."""
        if not self.checkpoints.is_dir():
            return []
        return [entry for entry in self.checkpoints.iterdir() if _CHECKPOINT.fullmatch(entry.name)]

    def check_resumable(self, settings: dict[str, Any], may_change: set[str]) -> Path:
        """Returns the checkpoint to go on from; writes nothing.

        Raises:
            ValueError: there is none, or the run that made it had other settings.
        """
        _check_writable(self.path)
        checkpoint = self.last_checkpoint()
        if checkpoint is None:
            raise ValueError(
                "finetune: output must hold a checkpoint to resume from; got "
                f"{self.path} with none in {CHECKPOINTS}/. Leave --resume out to start."
            )
        before = self.read_run().get("settings", {})
        changed = [
            name
            for name, value in settings.items()
            if name not in may_change and name in before and before[name] != value
        ]
        if changed:
            name = changed[0]
            raise ValueError(
                f"finetune: {name} must be {before[name]!r}, as in the run to be resumed in "
                f"{self.path}; got {settings[name]!r}. Give the same settings, or start a new run "
                "in another folder with --output."
            )
        return checkpoint

    def check_search(self) -> None:
        """Raises a ValueError unless there is a search to go on with."""
        if not (self.path / DATABASE).is_file():
            raise ValueError(
                f"search: output must hold a search to resume; got {self.path} without "
                f"{DATABASE}. Leave --resume out to start."
            )

    def read_run(self) -> dict[str, Any]:
        """Returns what run.json holds, nothing if it is not there or broken."""
        return self.read_json(RUN_FILE)

    def read_json(self, name: str) -> dict[str, Any]:
        """Returns what a file holds, nothing if it is not there or broken."""
        return _read_json(self.path / name)

    def start(self, resume: bool) -> None:
        """Makes the folder; a run that starts afresh drops checkpoints and curves of the last."""
        self.path.mkdir(parents=True, exist_ok=True)
        if resume:
            return
        for entry in self._checkpoint_folders():
            shutil.rmtree(entry)
        for entry in (self.path / TENSORBOARD).glob("events.out.tfevents.*"):
            entry.unlink()

    def start_search(self, resume: bool) -> None:
        """Makes the folder; a search that starts afresh forgets the trials of the one before."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume:
            for name in (DATABASE, SEARCH_FILE):
                (self.path / name).unlink(missing_ok=True)
            for run in (self.path / TRIALS).glob(f"*/{RUN_FILE}"):
                if run.parent.name.isdigit():
                    shutil.rmtree(run.parent)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes a file of the folder, whole."""
        disk.write_whole(self.path / name, json.dumps(content, indent=2) + "\n")

    def save(self, write: Callable[[Path], None], replaced: list[str]) -> list[str]:
        """Saves what ``write`` puts into a folder; returns the names of the files.

        Args:
            replaced: files of the run that is overwritten; those not written again go.
        """
        staging = self.path / _STAGING
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        write(staging)
        names = sorted(entry.name for entry in staging.iterdir())
        for name in names:
            os.replace(staging / name, self.path / name)
        staging.rmdir()
        for name in set(replaced) - set(names):
            # Names come from a file that may have been edited: stay inside the folder.
            if Path(name).name == name and (self.path / name).is_file():
                (self.path / name).unlink()
        return names


def choose_folder(output: str | None, resume: bool, stem: str = "finetune") -> OutputFolder:
    """Returns the folder to use: ``output``, or the first runs/<stem>-N that is free.

    With resume and no output: the last one that is there.
    """
    if output is not None:
        return OutputFolder(Path(output).expanduser())
    number = 1
    while _default(stem, number).exists():
        number += 1
    return OutputFolder(_default(stem, max(1, number - 1) if resume else number))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _default(stem: str, number: int) -> Path:
    return Path(_DEFAULT_ROOT) / f"{stem}-{number}"


def _check_writable(path: Path) -> None:
    why_not = disk.why_not_writable(path)
    if why_not:
        raise ValueError(
            f"finetune: output must be a folder that can be written to; got {path} ({why_not}). "
            "Choose another with --output."
        )
