"""Searches for the learning rate: grids and samplers, kills, and several workers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("optuna")

import optuna
from optuna.trial import TrialState

from fastattn.cli.app import app
from fastattn.finetune import FinetuneConfig
from fastattn.finetune import search as search_module
from fastattn.finetune.search import search
from fastattn.finetune.search_config import SearchConfig

RATES = (1e-4, 1e-3, 1e-2)


@pytest.fixture
def config(config: FinetuneConfig) -> FinetuneConfig:
    """Trials of four steps."""
    return replace(config, train_size=16, tensorboard=False)


def trials(folder: Path) -> list[Any]:
    url = f"sqlite:///{folder / 'search.db'}"
    return optuna.load_study(study_name="learning-rate", storage=url).trials


def points(folder: Path, state: TrialState = TrialState.COMPLETE) -> Counter[float]:
    return Counter(x.params["learning_rate"] for x in trials(folder) if x.state == state)


def command(config: FinetuneConfig, *more: str) -> list[str]:
    words = []
    for name in ("data", "model", "output", "train_size", "validation_size", "test_size"):
        words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    words += ["--batch-size", "4", "--max-length", "32", "--no-tensorboard", "--quiet"]
    return ["search", *words, "--learning-rates", ",".join(map(str, RATES)), *more]


def start(config: FinetuneConfig, *more: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "fastattn", *command(config, *more)]
    return subprocess.Popen(words, start_new_session=True, stderr=subprocess.PIPE)


def test_a_grid(config: FinetuneConfig, tmp_path: Path) -> None:
    result = search(config, SearchConfig(RATES))
    folder = tmp_path / "run"
    assert points(folder) == Counter(RATES)
    done = {x.params["learning_rate"]: x.value for x in trials(folder)}
    summary = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    assert summary == json.loads(json.dumps(result.summary))
    best = summary["best"]
    assert done[best["learning_rate"]] == best["validation_accuracy"] == max(done.values())
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    # The winner is whole, tested, and the one whose weights are left.
    metrics = json.loads((folder / "best" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["validation_accuracy"] == best["validation_accuracy"]
    assert metrics == summary["winner"]["metrics"] and "test_accuracy" in metrics
    kept = [path.parent.name for path in folder.glob("trials/*/model.safetensors")]
    assert kept == [str(summary["winner"]["trial"])]
    assert all("test_accuracy" not in path.read_text() for path in folder.glob("trials/*/metrics*"))
    assert not list(folder.glob("trials/*/checkpoints"))


def test_going_on(config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished trials are not repeated, new points are added, other settings are refused."""
    search(config, SearchConfig(RATES[:2], winner="none"))
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=r"output must be a folder without a model or results"):
        search(config, SearchConfig(RATES))
    again = replace(config, resume=True)
    with pytest.raises(ValueError, match=r"search: batch_size must be 4, as in the search so far"):
        search(replace(again, batch_size=2), SearchConfig(RATES))
    with pytest.raises(ValueError, match=r"output must hold a search to resume; got"):
        search(replace(again, output=str(tmp_path / "none")), SearchConfig(RATES))
    search(again, SearchConfig(RATES, winner="none"))
    assert points(folder) == Counter(RATES)
    monkeypatch.setattr(search_module, "finetune", None)  # there is nothing left to train
    search(again, SearchConfig(RATES, winner="none"))
    assert len(trials(folder)) == len(RATES)


def test_a_trial_that_fails_is_run_again(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-C."""
    finetune = search_module.finetune

    def interrupted(trial: FinetuneConfig, *args: Any, **options: Any) -> Any:
        if trial.learning_rate == RATES[1]:
            raise KeyboardInterrupt
        return finetune(trial, *args, **options)

    monkeypatch.setattr(search_module, "finetune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(config, SearchConfig(RATES, winner="none"))
    monkeypatch.undo()
    search(replace(config, resume=True), SearchConfig(RATES, winner="none"))
    folder = tmp_path / "run"
    assert points(folder) == Counter(RATES)
    assert points(folder, TrialState.FAIL) == Counter([RATES[1]])


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_sampler(config: FinetuneConfig, tmp_path: Path, sampler: str) -> None:
    result = search(config, SearchConfig(RATES, sampler=sampler, trials=2, winner="none"))
    tried = points(tmp_path / "run")
    assert len(tried) == 2 and all(RATES[0] <= rate <= RATES[-1] for rate in tried)
    assert result.summary["winner"]["metrics"] is None
    # A trial's proposal depends on its number and the seed: elsewhere it is the same.
    other = replace(config, output=str(tmp_path / "other"))
    search(other, SearchConfig(RATES, sampler=sampler, trials=2, winner="none"))
    assert points(tmp_path / "other") == tried


def test_the_winner_trained_anew(config: FinetuneConfig, tmp_path: Path) -> None:
    search(config, SearchConfig(RATES[:1], winner="retrain"))
    best = tmp_path / "run" / "best"
    metrics = json.loads((best / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["train_texts"] == 16 + 8 and metrics["validation_accuracy"] is None
    assert "test_accuracy" in metrics and (best / "model.safetensors").is_file()


def test_a_winner_that_is_elsewhere(config: FinetuneConfig, tmp_path: Path) -> None:
    search(config, SearchConfig(RATES[:1], winner="none"))
    shutil.rmtree(tmp_path / "run" / "trials")
    again = replace(config, resume=True)
    with pytest.raises(ValueError, match=r"winner must be retrain or none where the best model is"):
        search(again, SearchConfig(RATES[:1], winner="reuse"))


def test_of_two_trials_of_a_point_the_first_runs(config: FinetuneConfig, tmp_path: Path) -> None:
    """Two workers may add the same point at the same time."""
    search(config, SearchConfig(RATES[:1], winner="none"))
    folder = tmp_path / "run"
    study = optuna.load_study(
        study_name="learning-rate", storage=f"sqlite:///{folder / 'search.db'}"
    )
    for rate in (RATES[0], RATES[1], RATES[1]):
        study.enqueue_trial({"learning_rate": rate}, user_attrs={"point": rate})
    search(replace(config, resume=True), SearchConfig(RATES, winner="none"))
    assert points(folder) == Counter(RATES)
    assert [x.state for x in trials(folder)].count(TrialState.PRUNED) == 2


def test_a_killed_search_goes_on(config: FinetuneConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(replace(config, train_size=36), "--epochs", "3", "--winner", "none")
    database = folder / "search.db"
    deadline = time.monotonic() + 600
    # Killed while the second trial trains.
    while not (folder / "trials" / "1" / "run.json").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert database.is_file()
    before = {x.number: x.state for x in trials(folder)}
    assert (before[0], before[1]) == (TrialState.COMPLETE, TrialState.RUNNING)
    settings = replace(config, train_size=36, epochs=3.0, resume=True, tensorboard=False)
    search(settings, SearchConfig(RATES, winner="none"))
    assert points(folder) == Counter(RATES)
    states = {x.number: x.state for x in trials(folder)}
    assert (states[0], states[1]) == (TrialState.COMPLETE, TrialState.FAIL)


def test_two_workers_share_a_grid(config: FinetuneConfig, tmp_path: Path) -> None:
    """Real processes; the command says the same as the function."""
    words = command(config, "--workers", "2", "--winner", "none")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "run"
    assert points(folder) == Counter(RATES)
    workers = {x.user_attrs["worker"]["pid"] for x in trials(folder)}
    assert os.getpid() not in workers and len(workers) <= 2


def test_a_worker_is_known_by_more_than_its_number() -> None:
    this = search_module._Worker.this()
    assert not this.is_dead()
    assert replace(this, started=this.started - 5).is_dead()  # its number serves another process
    assert not replace(this, host="elsewhere", pid=2**22 + 1).is_dead()  # its heartbeat decides
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert replace(this, pid=child.pid).is_dead()


def test_a_trial_of_another_machine_that_died_is_run_again(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there is nothing else to do but wait for it."""
    monkeypatch.setattr(search_module, "_HEARTBEAT_S", 1)
    monkeypatch.setattr(search_module, "_GRACE_S", 1)
    search(config, SearchConfig(RATES[:1], winner="none"))
    folder = tmp_path / "run"
    url = f"sqlite:///{folder / 'search.db'}"
    study = optuna.load_study(study_name="learning-rate", storage=url)
    study.enqueue_trial({"learning_rate": RATES[1]}, user_attrs={"point": RATES[1]})
    trial = study.ask()
    trial.set_user_attr("worker", {"host": "elsewhere", "pid": 1, "started": 0.0})
    search_module._open_storage(url).record_heartbeat(trial._trial_id)
    naps = iter(range(30))
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (next(naps), sleep(seconds)))
    search(replace(config, resume=True), SearchConfig(RATES[:2], winner="none"))
    assert points(folder) == Counter(RATES[:2])
    assert [x.state for x in trials(folder)].count(TrialState.FAIL) == 1


def test_two_commands_share_a_database(config: FinetuneConfig, tmp_path: Path) -> None:
    """As on two machines: each has a folder of its own."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    folders = [tmp_path / "one", tmp_path / "two"]
    processes = [
        start(replace(config, output=str(folder)), "--winner", "none", "--storage", url)
        for folder in folders
    ]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()
    study = optuna.load_study(study_name="learning-rate", storage=url)
    done = [x for x in study.trials if x.state == TrialState.COMPLETE]
    assert Counter(x.params["learning_rate"] for x in done) == Counter(RATES)
    assert {x.user_attrs["worker"]["pid"] for x in done} <= {x.pid for x in processes}
    found = [json.loads((x / "search.json").read_text(encoding="utf-8")) for x in folders]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("scheme", "module", "package"),
    [
        ("postgresql+psycopg", "psycopg", r"'psycopg\[binary\]'"),
        ("postgresql+psycopg2", "psycopg2", "psycopg2-binary"),
        ("mysql", "MySQLdb", "mysqlclient"),
        ("mysql+pymysql", "pymysql", "pymysql"),
    ],
)
def test_the_driver_of_a_database_is_missing(
    config: FinetuneConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    module: str,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"got no module {module}\. Run `pip install {package}`\."
    with pytest.raises(ImportError, match=message) as caught:
        search(config, SearchConfig(RATES, storage=f"{scheme}://me:secret@there/name"))
    assert f"storage='{scheme}://me:***@there/name'" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("sqlite:////no/such/folder/search.db", "unable to open database file"),
        ("oraculum://me:secret@there/name", "Can't load plugin: sqlalchemy.dialects:oraculum"),
        (
            "postgresql://me:secret@there:port/name",
            "invalid literal for int() with",
        ),
        ("sqlite:///{junk}", "file is not a database"),
        ("sqlite:///{other}", "version_info"),
    ],
)
def test_a_database_out_of_reach(
    config: FinetuneConfig, tmp_path: Path, storage: str, reason: str
) -> None:
    (tmp_path / "junk.db").write_bytes(b"no database" * 500)
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE version_info (mine INTEGER)")
    url = storage.format(junk=tmp_path / "junk.db", other=tmp_path / "other.db")
    with pytest.raises(ValueError, match=r"storage must be the URL of a database that can be") as x:
        search(config, SearchConfig(RATES, storage=url))
    assert reason in str(x.value) and "secret" not in str(x.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("storage", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_database_in_memory(config: FinetuneConfig, tmp_path: Path, storage: str) -> None:
    with pytest.raises(ValueError, match=r"storage must be a database that is kept, .* in memory"):
        search(config, SearchConfig(RATES, storage=storage))
    assert not (tmp_path / "run").exists()


def test_a_trial_that_has_diverged_is_no_winner(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all logits are no numbers, the first class is still right now and then."""
    finetune = search_module.finetune
    broken = {*RATES[1:]}

    def run(trial: FinetuneConfig, *args: Any, **options: Any) -> Any:
        result = finetune(trial, *args, **options)
        if trial.learning_rate in broken:
            result.metrics.update(validation_loss=math.nan, validation_accuracy=1.0)
        return result

    monkeypatch.setattr(search_module, "finetune", run)
    result = search(config, SearchConfig(RATES, winner="none"))
    assert result.summary["best"]["learning_rate"] == RATES[0]
    broken.add(RATES[0])
    other = replace(config, output=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"got 0.0001, and all trials have diverged. Go on with"):
        search(other, SearchConfig(RATES[:1], winner="none"))
    broken.clear()
    resumed = search(replace(other, resume=True), SearchConfig(RATES[1:2], winner="none"))
    assert resumed.summary["best"]["learning_rate"] == RATES[1]


BAD = {
    "rates": (["--learning-rates", "1e-5;2e-5"], "is not numbers with commas between them"),
    "sampler": (["--sampler", "best"], "sampler must be one of grid, tpe, random; got 'best'"),
    "no validation": (["--validation-size", "0"], "validation_size must be at least 1"),
    "resume": (["--resume"], "output must hold a search to resume"),
    "data": (["--data", "none.csv"], "data must be a file or folder that exists"),
    "column": (["--text-column", "body"], "must have a column 'body'; got none. Its columns are"),
    "size": (["--train-size", "1000"], "train_size must be at most the"),
    "model": (["--model", "/no/model"], "model must be a folder that exists"),
    "length": (["--max-length", "65"], "max_length must be at most the 64 positions of the model"),
    "dropout": (["--dropout", "2"], "dropout must be at least 0 and below 1; got 2.0"),
    "option": (["--num-beams", "2"], "num_beams must be left out unless the task is translation"),
    "smoothing": (
        ["--task", "masked-lm", "--label-smoothing", "0.1"],
        "label_smoothing must be 0 for the task masked-lm",
    ),
    "overwrite": (
        ["--overwrite", "--storage", "postgresql://me@there/x"],
        "overwrite must be left out beside storage, whose study it does not replace",
    ),
    "taken": (["--output", "{taken}"], "output must be a folder without a model or results in it"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_message(
    config: FinetuneConfig, tmp_path: Path, name: str
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "search.db").touch()
    before = set(tmp_path.rglob("*"))
    changed, message = BAD[name]
    words = command(config, *(word.format(taken=taken) for word in changed))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert set(tmp_path.rglob("*")) == before


def test_saving_within_trials_is_refused(config: FinetuneConfig) -> None:
    with pytest.raises(
        ValueError, match=r"save_steps must be left out, for a trial that was inter"
    ):
        search(replace(config, save_steps=2), SearchConfig(RATES))


def test_help_has_the_options_of_both() -> None:
    shown = CliRunner().invoke(app, ["search", "--help"], env={"COLUMNS": "200"}).output
    for name in ("learning-rates", "sampler", "trials", "workers", "winner", "storage", "study"):
        assert f"--{name}" in shown
    assert "--batch-size" in shown and "--patience" in shown
    # Not as options of their own; the recipes name the first.
    assert "│ --learning-rate " not in shown and "│ --compare-steps" not in shown
    assert "--save-steps" not in shown


def test_optuna_is_missing(config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *x: None if name == "optuna" else find(name, *x)
    )
    result = CliRunner().invoke(app, command(config))
    assert result.exit_code == 2
    assert "pip install 'fastattn[search]'" in " ".join(result.output.split())
