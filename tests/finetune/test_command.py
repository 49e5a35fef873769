"""``fastattn finetune`` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastattn.cli.app import app
from fastattn.finetune import FinetuneConfig, finetune
from fastattn.finetune.output import OutputFolder
from fastattn.finetune.recipes import RECIPES

COMMAND = [sys.executable, "-c", "from fastattn.cli import main; main()", "finetune"]


def options(config: FinetuneConfig) -> list[str]:
    """The command line of some settings."""
    given = []
    for name, value in config.as_dict().items():
        option = "--" + name.replace("_", "-")
        if name == "progress":
            given += ["--progress" if value else "--quiet"]
        elif name == "tensorboard":
            given += [] if value is None else ["--tensorboard" if value else "--no-tensorboard"]
        elif name == "patch":
            given += [] if value else ["--no-patch"]
        elif isinstance(value, bool):
            given += [option] if value else []
        elif isinstance(value, dict):
            given += [part for key, column in value.items() for part in (option, f"{key}={column}")]
        elif value is not None:
            given += [option, str(value)]
    return given


def invoke_printing(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["finetune", *arguments])
    return result.exit_code, result.output


def invoke(*arguments: str) -> tuple[int, str]:
    code, output = invoke_printing(*arguments)
    return code, " ".join(output.split())


def run_python_in(output: str) -> subprocess.CompletedProcess[str]:
    """Types the Python that a run prints, as a user would who copies it."""
    start = output.index('python -c "')
    script = output[start : output.index('"\n', start) + 1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )


def test_every_setting_has_an_option(config: FinetuneConfig) -> None:
    shown = CliRunner().invoke(app, ["finetune", "--help"], env={"COLUMNS": "200"}).output
    for name in config.as_dict():
        assert f"--{name.replace('_', '-')}" in shown


def test_a_recipe_is_shown_and_recorded(config: FinetuneConfig, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["finetune", "--help"], env={"COLUMNS": "200"}).output
    assert "imdb: --data imdb --train-size all" in " ".join(shown.split()).replace("│ │ ", "")
    sizes = ["--train-size", "24", "--validation-size", "8", "--test-size", "16"]
    small = ["--data", config.data, "--model", config.model, "--max-length", "32", *sizes]
    given = ["--batch-size", "8", "--no-compare", "--quiet", "--output", str(config.output)]
    code, output = invoke("--recipe", "imdb", *small, *given)
    assert code == 0, output
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    recipe = RECIPES["imdb"]
    for name in ("epochs", "warmup_steps", "eval_batch_size", "learning_rate", "truncation_side"):
        assert run["settings"][name] == recipe[name]
    # Given, though it is what FinetuneConfig has without a recipe.
    assert (run["settings"]["recipe"], run["settings"]["batch_size"]) == ("imdb", 8)


def test_a_run_in_a_process_of_its_own(config: FinetuneConfig, tmp_path: Path) -> None:
    config = replace(config, progress=True, compare_steps=1)
    done = subprocess.run([*COMMAND, *options(config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in (
        "splits    train 24 | validation 8 | test 16 texts, none in two of them",
        " replaced, 0 left",
        "test accuracy",
        "tokens/s (padding not counted)",
        "peak memory",
        "times as fast as stock Transformers (sdpa)",
        "batches of 4 x 32 tokens",
        "What to type next",
        "from transformers import pipeline",
    ):
        assert words in done.stdout
    assert "loss=" in done.stderr and "tokens/s=" in done.stderr
    assert "Traceback" not in done.stderr and "arning" not in done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert f"{metrics['test_accuracy']:.3f}" in done.stdout
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert "--batch-size 4" in run["command"]


def test_a_disk_that_takes_no_checkpoint(config: FinetuneConfig, tmp_path: Path) -> None:
    """Files of at most a megabyte stand for a full disk: the model has four."""
    command = [*COMMAND, *options(config)]
    limited = ["sh", "-c", 'ulimit -f 2048; exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True)
    message = " ".join(done.stderr.split())
    assert done.returncode == 2, message
    assert "output must be a folder with room for the run" in message
    assert "(File too large). Make room, or choose another with --output." in message
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_what_it_says_to_type_next_works(config: FinetuneConfig) -> None:
    from transformers import pipeline

    code, output = invoke_printing(*options(replace(config, progress=True)))
    assert code == 0, output
    done = run_python_in(output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'label': ") == 2
    classify = pipeline("text-classification", config.output, truncation=True)
    assert classify("A film to remember. " * 50)[0]["label"] in ("0", "1")


EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {"validation_size": 0},
    "choosing": {
        **{"eval_steps": 5, "patience": 20, "label_smoothing": 0.1, "augment": 1},
        **{"learning_rate": 1e-3, "max_steps": 60, "train_size": 20, "validation_size": 16},
    },
}


@pytest.mark.parametrize("extras", EXTRAS)
def test_a_killed_run_goes_on_to_the_same_model(
    config: FinetuneConfig, tmp_path: Path, extras: str
) -> None:
    from transformers import AutoModelForSequenceClassification

    # One thread, as in this process: the sums of torch depend on the number of threads.
    config = replace(config, epochs=10.0, save_steps=2, threads=1, **EXTRAS[extras])
    whole = finetune(replace(config, output=str(tmp_path / "whole")))
    process = subprocess.Popen(
        [*COMMAND, *options(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    folder = tmp_path / "run"
    deadline = time.monotonic() + 300
    while OutputFolder(folder).last_checkpoint() is None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "model.safetensors").exists()
    code, output = invoke(*options(replace(config, resume=True, progress=True)))
    assert code == 0, output
    resumed = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert 0 < resumed["resumed_from_step"] < resumed["train_steps"] == 60
    states = [
        AutoModelForSequenceClassification.from_pretrained(path).state_dict()
        for path in (whole.output, folder)
    ]
    assert all(states[0][name].equal(value) for name, value in states[1].items())
    for name in ("test_loss", "validation_accuracy", "kept_step", "stopped_early"):
        assert resumed[name] == whole.metrics[name]


BAD = {
    "no file": (["--data", "none.csv"], "data must be a file or folder that exists, or a data set"),
    "no column": (["--text-column", "body"], "Its columns are: text, label. Name the one that is"),
    "two columns": (["--text-column", "text", "--column", "text=label"], "must not name different"),
    "column twice": (["--column", "text=a", "--column", "text=b"], "given once for each name; got"),
    "no such column": (
        ["--column", "body=text"],
        "column must name one of the columns text,",
    ),
    "one class": (["--data", "{one_class}"], "must hold at least two classes; got only '1'"),
    "empty": (["--data", "{empty}"], "must have at least one row; got none"),
    "no data": (["--data", ""], "data must be a name, or left out; got ''. Set it with --data"),
    "no label": (
        ["--data", "{no_label}"],
        "no_label.csv, row 3: a row must have a label; got",
    ),
    "configuration": (["--data-config", "sst2"], "data_config must be left out for a file"),
    "packaged": (
        ["--data", "imdb", "--text-column", "x"],
        "text_column must be left out for",
    ),
    "other task's": (
        ["--data", "news"],
        "which is for token-classification. Use --task token-",
    ),
    "threshold": (
        ["--threshold", "0.9"],
        "threshold must be left out unless the task is mul",
    ),
    "plain tags": (
        ["--plain-tags"],
        "plain_tags must be left out unless the task is token",
    ),
    "too many": (["--train-size", "100"], "train_size must be at most the 36 different texts"),
    "no compare": (
        ["--compare-steps", "2", "--no-compare"],
        "beside no_compare, which measures no",
    ),
    "not patched": (["--no-patch", "--compare-steps", "2"], "compare_steps must be left out for a"),
    "not patched, the default": (
        ["--no-patch", "--compare-steps", "5"],
        "which is stock Transformers itself; got 5. Leave --compare-steps or --no-patch out",
    ),
    "long output": (["--output", "x" * 300], "output must be a folder that can be written to"),
    "recipe": (["--recipe", "squad"], "recipe must be one of imdb; got 'squad'"),
    "patience": (["--patience", "1", "--keep", "last"], "patience must be given together with"),
    "no model": (["--model", "/no/model"], "model must be a folder that exists"),
    "learning rate": (["--learning-rate", "0"], "learning_rate must be above 0"),
    "dropout": (["--dropout", "1"], "dropout must be at least 0 and below 1; got 1.0"),
    "batch size": (["--batch-size", "0"], "batch_size must be a whole number of at least 1"),
    "output": (["--output", "{empty}/run"], "output must be a folder that can be written to"),
    "taken": (["--output", "{taken}"], "which holds config.json. Choose another folder with"),
    "resume": (["--resume"], "output must hold a checkpoint to resume from"),
    "size": (["--train-size", "some"], 'train_size must be "all" or a whole number'),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_message(
    config: FinetuneConfig, tmp_path: Path, name: str
) -> None:
    files = {
        "one_class": "text,label\na,1\nb,1\n",
        "empty": "text,label\n",
        "no_label": "text,label\na,1\nb,\n",
    }
    places = {"taken": tmp_path / "taken"}
    for stem, content in files.items():
        places[stem] = tmp_path / f"{stem}.csv"
        places[stem].write_text(content, encoding="utf-8")
    places["taken"].mkdir()
    (places["taken"] / "config.json").touch()
    before = set(tmp_path.rglob("*"))
    changed, message = BAD[name]
    # A later option goes first.
    code, output = invoke(*options(config), *(word.format(**places) for word in changed))
    assert code == 2
    assert message in output
    assert "Traceback" not in output
    assert set(tmp_path.rglob("*")) == before


def test_debug_shows_the_traceback(config: FinetuneConfig) -> None:
    result = CliRunner().invoke(app, ["finetune", *options(config), "--dropout", "2", "--debug"])
    assert isinstance(result.exception, ValueError)


def test_no_compare(config: FinetuneConfig, tmp_path: Path) -> None:
    words = options(config)
    position = words.index("--compare-steps")
    code, output = invoke(*words[:position], *words[position + 2 :], "--no-compare")
    assert code == 0, output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert "compare" not in metrics


@pytest.mark.parametrize("given", ["source", "=english", "source="])
def test_a_column_without_its_name(given: str) -> None:
    code, output = invoke("--task", "translation", "--column", given)
    assert code != 0
    assert f"finetune: column must be NAME=COLUMN; got '{given}'" in output


@pytest.mark.parametrize("command", ["finetune", "search"])
def test_an_option_that_the_task_does_not_use_is_refused(command: str) -> None:
    """Every option of every task, before anything is written."""
    given = {
        "text_column": "x",
        "label_column": "x",
        "label_columns": "x,y",
        "label_separator": ";",
        "plain_tags": None,
        "threshold": "0.9",
        "stride": "3",
        "max_answer_length": "9",
        "mlm_probability": "0.3",
        "whole_words": None,
        "num_beams": "3",
    }
    used = {
        "classification": {"text_column", "label_column"},
        "multilabel": {"text_column", "label_column", "label_columns", "label_separator"}
        | {"threshold"},
        "token-classification": {"text_column", "label_column", "plain_tags"},
        "question-answering": {"text_column", "label_column", "stride", "max_answer_length"},
        "masked-lm": {"text_column", "mlm_probability", "whole_words"},
        "translation": {"num_beams"},
    }
    for task, own in used.items():
        for name, value in given.items():
            if name in own and command == "search":
                continue  # it would begin
            option = f"--{name.replace('_', '-')}"
            words = [option] if value is None else [option, value]
            # A file that is not there: what is used is refused for that alone.
            result = CliRunner().invoke(
                app, [command, "--task", task, "--data", "none.csv", "--quiet", *words]
            )
            message = (
                "data must be a file or folder that exists"
                if name in own
                else f"{name} must be left out "
            )
            assert result.exit_code == 2
            assert message in result.output, (task, name)
            assert task in result.output or name in own


def test_columns_of_other_names(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("en,de\na dog,ein Hund\n", encoding="utf-8")
    named = ["--column", "source=en", "--column", "target=nl"]
    code, output = invoke("--task", "translation", "--data", str(file), *named)
    assert code != 0
    assert "pairs.csv must have a column 'nl'; got none. Its columns are: en, de." in output
