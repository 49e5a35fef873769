"""Two real processes over gloo, as torchrun and accelerate start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from fastattn.finetune import FinetuneConfig, finetune


def options(config: FinetuneConfig) -> list[str]:
    """The command line of the settings that are not the defaults."""
    defaults, given = FinetuneConfig().as_dict(), []
    for name, value in config.as_dict().items():
        if name == "progress":
            given += ["--progress" if value else "--quiet"]
        elif value != defaults[name]:
            given += ["--" + name.replace("_", "-"), str(value)]
    return given


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Of any processes, in spite of the name; port 0 is any that is free.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--main_process_port", "0"]


def launch(command: list[str], launcher: list[str] = TORCHRUN) -> subprocess.CompletedProcess[str]:
    """Runs a command in two processes."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [sys.executable, "-m", *launcher, *command], capture_output=True, text=True, env=env
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def test_two_processes_do_what_one_does(config: FinetuneConfig, tmp_path: Path) -> None:
    """With the same texts a step, without dropout; sums are in another order."""
    # Seven cannot be shared out evenly: one text is evaluated twice, and must be counted once. (In
    # the mean of the loss the Trainer does count it twice: here the test set is an even one.)
    config = replace(config, dropout=0.0, validation_size=7, epochs=2.0)
    one = finetune(replace(config, batch_size=8, output=str(tmp_path / "one")))
    shared = replace(config, progress=True, compare_steps=2)
    done = launch(["-m", "fastattn", "finetune", *options(shared)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("splits    train 24 | validation 7 | test 16") == 1
    assert "batch size 8 (4 in each of 2 processes)" in done.stdout
    assert "no comparison with stock Transformers" in done.stdout
    folder = tmp_path / "run"
    two = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert (two["processes"], two["batch_size"], two["global_batch_size"]) == (2, 4, 8)
    for name in (
        "train_steps",
        "train_tokens",
        "test_texts",
        "test_accuracy",
        "kept_step",
        "validation_accuracy",
    ):
        assert two[name] == one.metrics[name]
    assert two["test_loss"] == pytest.approx(one.metrics["test_loss"], rel=1e-4)
    torch.testing.assert_close(weights(folder), weights(one.output), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"resumed with as many processes as before, 2; got 1"):
        finetune(replace(config, resume=True))


def test_accelerate_launch_starts_two_processes(config: FinetuneConfig, tmp_path: Path) -> None:
    given = options(replace(config, progress=True, device="cpu"))
    done = launch(["-m", "fastattn", "finetune", *given], ACCELERATE)
    assert done.returncode == 0, done.stderr
    assert "batch size 8 (4 in each of 2 processes)" in done.stdout
    assert done.stdout.count("splits    train 24 |") == done.stdout.count("test accuracy") == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["processes"], metrics["train_steps"]) == (2, 3)


# What goes wrong in one process only: a file that the other machine lacks; training itself.
_SCRIPT = """
import os, sys
from fastattn.cli import main
rank = int(os.environ["RANK"])
where, failing = sys.argv.pop(1), int(sys.argv.pop(1))
if rank == failing and where == "data":
    sys.argv[sys.argv.index("--data") + 1] = "none.csv"
if rank == failing and where == "training":
    from fastattn.finetune.tasks.classification import Classification
    def collator(self, tokenizer, model):
        raise MemoryError("no memory left")
    Classification.collator = collator
main()
"""


@pytest.mark.parametrize(
    ("where", "failing", "message"),
    [
        ("data", 1, "process 1 of 2: data: data must be a file or folder that exists"),
        ("data", 0, "error: data: data must be a file or folder that exists"),
        ("training", 1, "process 1 of 2: MemoryError: no memory left"),
    ],
)
def test_an_error_in_one_process_ends_both(
    config: FinetuneConfig, tmp_path: Path, where: str, failing: int, message: str
) -> None:
    script = tmp_path / "start.py"
    script.write_text(_SCRIPT, encoding="utf-8")
    done = launch([str(script), where, str(failing), "finetune", *options(config)])
    assert done.returncode != 0
    said = (done.stdout + done.stderr).splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], errors
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_setting_that_is_wrong_everywhere_is_said_once(config: FinetuneConfig) -> None:
    done = launch(["-m", "fastattn", "finetune", *options(config), "--batch-size", "0"])
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert said.count("batch_size must be a whole number of at least 1") == 1
