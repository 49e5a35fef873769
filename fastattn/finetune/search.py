"""The learning rate, chosen on the validation set: ``fastattn search``.

A study of Optuna, whose storage remembers every trial: a grid of points, or what one of its
samplers proposes. Each trial is a run of :func:`fastattn.finetune.finetune` in a folder of its own.

Any number of workers share a study, on one machine or, through a storage that they all reach, on
several. The rules by which none does what another does or has done:

- The points of a grid are trials that wait in the storage, which gives each to one worker.
- Of two trials of one point, the one with the lower number runs, and the other is surplus. So it
  does no harm if two workers add the same point.
- A trial whose worker has died is failed, by a worker on the same machine at once, by others when
  its heartbeat has been missing for two minutes. Then its point is added again.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import multiprocessing
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import psutil
import torch
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from transformers.utils import logging as transformers_logging

from fastattn.finetune import search_report
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.output import (
    CHECKPOINTS,
    DATABASE,
    SEARCH_FILE,
    TRIALS,
    OutputFolder,
    choose_folder,
)
from fastattn.finetune.run import check_run, evaluate_saved, finetune
from fastattn.finetune.search_config import SearchConfig
from fastattn.finetune.tasks import get_task

BEST = "best"
PARAMETER = "learning_rate"

_HEARTBEAT_S = 30
_GRACE_S = 120  # without a heartbeat, after which another machine's worker counts as dead
_POLL_S = 1.0
_LOCK_TIMEOUT_S = 60  # of SQLite, which one worker at a time writes to

# Settings that may differ between the workers of a study, and when it is continued.
_MAY_CHANGE = {
    *("output", "overwrite", "resume", "progress", "threads", "compare_steps", "device"),
    *("eval_batch_size", "save_steps", "tensorboard", "recipe", PARAMETER),
}
# Modules of drivers: what pip installs them from.
_DRIVERS = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}
_ALIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class SearchResult(NamedTuple):
    """Where a search was saved, and what search.json holds."""

    output: Path
    summary: dict[str, Any]


class _Search(NamedTuple):
    """What all workers of a search share."""

    config: FinetuneConfig  # of a trial, but for its learning rate and folder
    search: SearchConfig
    storage: str
    folder: Path


def search(
    config: FinetuneConfig, search: SearchConfig, console: Console | None = None
) -> SearchResult:
    """Finds the learning rate that does best on the validation set.

    Everything that can be wrong is checked before anything is written or trained, but for the
    tokens of the test set, which is not looked at.

    Args:
        config: the settings of every trial but for the learning rate; ``output`` is the folder
            of the search, and ``resume`` continues the one in it, or joins it while it runs.
        console: where progress and results are printed. Default: as for ``finetune``.

    Raises:
        ValueError: a setting breaks its rule, or the study was begun with others.
        DataError, PatchError: as for ``finetune``.
    """
    console = console or Console(quiet=not config.progress, highlight=False)
    config.check()
    search.check(config)
    folder = choose_folder(config.output, config.resume, stem="search")
    if not config.resume:
        folder.check_free(config.overwrite)
    elif search.storage is None:
        folder.check_search()
    storage = search.storage or f"sqlite:///{(folder.path / DATABASE).resolve()}"
    trial_config = replace(config, overwrite=True, resume=False, compare_steps=0)
    shared = _Search(trial_config, search, storage, folder.path)
    check_run(replace(trial_config, output=_trial_folder(shared, 0)))
    # A database of its own may be out of reach, or begun with other settings.
    study = None if search.storage is None else _open_study(shared)
    folder.start_search(config.resume)
    study = study or _open_study(shared)
    search_report.print_start(console, config, search, study, folder.path)
    if search.workers > 1:
        _work_in_processes(shared, console)
    _work(shared, console, wait=True)
    return _finish(shared, study, folder, console)


def _open_study(shared: _Search) -> optuna.Study:
    """Opens the study, or makes it.

    Raises:
        ValueError: it was begun with other settings.
    """
    config, search = shared.config, shared.search
    storage = _open_storage(shared.storage)
    greater = get_task(config.task).greater_is_better
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=search.study,
            load_if_exists=True,
            direction="maximize" if greater else "minimize",
        )
    except optuna.exceptions.StorageInternalError as error:
        raise _unusable(shared.storage, error) from error
    settings = {k: v for k, v in config.as_dict().items() if k not in _MAY_CHANGE}
    settings["sampler"] = search.sampler
    before = study.user_attrs.get("settings", settings)
    for name, value in settings.items():
        if name in before and before[name] != value:
            raise ValueError(
                f"search: {name} must be {before[name]!r}, as in the search so far; got {value!r}. "
                "Give the same settings, or search in another folder with --output, or under "
                "another name with --study."
            )
    study.set_user_attr("settings", settings)
    return study


def _open_storage(url: str) -> optuna.storages.RDBStorage:
    """Opens the database, and makes its tables if it has none.

    Raises:
        ImportError: the driver of the database is not installed.
        ValueError: it cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _check_is_kept(url)
    # A connection that a firewall dropped while a model trained is made anew.
    settings: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        settings = {"connect_args": {"timeout": _LOCK_TIMEOUT_S}}

    def connect() -> optuna.storages.RDBStorage:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.storages.RDBStorage(
                url,
                engine_kwargs=settings,
                heartbeat_interval=_HEARTBEAT_S,
                grace_period=_GRACE_S,
            )

    try:
        try:
            return connect()
        except DBAPIError:
            # Of two workers that make the tables at the same time, one fails. Then they are there.
            time.sleep(_POLL_S)
            return connect()
    except ImportError as error:
        module = getattr(error.__cause__, "name", None) or "driver"
        raise ImportError(
            f"search: the driver of the database must be installed to use storage="
            f"{_without_password(url)!r}; got no module {module}. Run `pip install "
            f"{_DRIVERS.get(module, module)}`."
        ) from error
    # Of other errors, Optuna raises one for tables of another version than its own, and the URL's
    # parser one for a port that is no number.
    except (
        SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        RuntimeError,
        ValueError,
    ) as error:
        raise _unusable(url, error) from error


def _unusable(url: str, error: BaseException) -> ValueError:
    if isinstance(error, optuna.exceptions.StorageInternalError):
        error = error.__cause__ or error  # its own words are the same for all
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    return ValueError(
        "search: storage must be the URL of a database that can be reached, and whose tables are "
        f"Optuna's; got {_without_password(url)!r} ({reason}). Check it, and that the database "
        "runs."
    )


def _check_is_kept(url: str) -> None:
    """Raises a ValueError for a database in memory: each worker would have one of its own."""
    try:
        parts = make_url(url)
    except (SQLAlchemyError, ValueError):
        return  # who connects says what is wrong with it
    if parts.get_backend_name() == "sqlite" and parts.database in (None, "", ":memory:"):
        raise ValueError(
            "search: storage must be a database that is kept, for each worker opens it anew; got "
            f"{url!r}, which is in memory. Name a file, as in sqlite:////home/me/search.db."
        )


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)


def _work_in_processes(shared: _Search, console: Console) -> None:
    """Works in several processes until there is nothing left to begin."""
    workers = shared.search.workers
    threads = shared.config.threads or max(1, torch.get_num_threads() // workers)
    quiet = replace(shared.config, progress=False, threads=threads)
    # Not forked: threads of torch do not survive that.
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    processes = [
        context.Process(target=_worker, args=(shared._replace(config=quiet), errors))
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if not errors.empty():
        raise ValueError(errors.get())
    for process in processes:
        if process.exitcode:
            words = f"worker {process.pid} was killed (exit status {process.exitcode})"
            search_report.print_line(console, f"note: {words}; what it was at is run again")


def _worker(shared: _Search, errors: Any) -> None:
    """A process of its own that runs trials."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        _work(shared, Console(quiet=True), wait=False)
    except KeyboardInterrupt:
        pass  # the command that started it says so
    except Exception as error:
        errors.put(str(error))


def _work(shared: _Search, console: Console, wait: bool) -> None:
    """Runs trials until there are none to begin.

    Args:
        wait: until the trials of others have ended, too, and do those of them that die.
    """
    study = _open_study(shared)
    while True:
        _fail_dead(study)
        if shared.search.sampler == "grid":
            _add_missing(study, shared.search.learning_rates)
        if _has_work(study, shared.search):
            study.optimize(lambda trial: _run_trial(trial, shared, console), n_trials=1)
        elif wait and study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            time.sleep(_POLL_S)
        else:
            return


def _has_work(study: optuna.Study, search: SearchConfig) -> bool:
    if search.trials is None:
        return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
    begun = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE))
    return len(begun) < search.trials


def _add_missing(study: optuna.Study, grid: tuple[float, ...]) -> None:
    """Adds the points that no trial stands for."""
    trials = study.get_trials(deepcopy=False, states=_ALIVE)
    there = {trial.user_attrs.get("point") for trial in trials}
    for point in grid:
        if point not in there:
            study.enqueue_trial({PARAMETER: point}, user_attrs={"point": point})


def _fail_dead(study: optuna.Study) -> None:
    """Fails the trials of workers that have died: here, and by their heartbeat elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Optuna does so itself, but only when it begins a trial: one that waits would wait forever.
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker")
        if worker is not None and _Worker(**worker).is_dead():
            # If another worker has just done so, nothing is left to do.
            with contextlib.suppress(ValueError, RuntimeError):
                study.tell(trial.number, state=TrialState.FAIL)


def _run_trial(trial: optuna.Trial, shared: _Search, console: Console) -> float:
    """Trains with one learning rate; returns the validation metric."""
    trial.set_user_attr("worker", asdict(_Worker.this()))
    search, study = shared.search, trial.study
    if _is_surplus(trial, study, search):
        raise optuna.TrialPruned
    if search.sampler != "grid":
        study.sampler = _sampler(search, shared.config.seed + trial.number)
    low, high = min(search.learning_rates), max(search.learning_rates)
    rate = trial.suggest_float(PARAMETER, low, high, log=True)
    search_report.print_line(console, f"trial {trial.number}: learning rate {rate:.3g}")
    folder = _trial_folder(shared, trial.number)
    config = replace(shared.config, learning_rate=rate, output=folder)
    result = finetune(config, Console(quiet=True), test=False)
    shutil.rmtree(result.output / CHECKPOINTS)
    metric = get_task(config.task).metric
    for name, value in (
        ("folder", str(result.output.resolve())),
        ("kept_step", result.metrics["kept_step"]),
        ("seconds", result.metrics["train_seconds"]),
        ("history", [row for row in result.history if "eval_loss" in row]),
    ):
        trial.set_user_attr(name, value)
    score = result.metrics[f"validation_{metric}"]
    words = search_report.score_words(metric, score)
    search_report.print_line(console, f"trial {trial.number}: validation {words}")
    if math.isnan(score) or not math.isfinite(result.metrics["validation_loss"]):
        search_report.print_line(
            console, f"trial {trial.number}: it has diverged, and is no winner"
        )
        return -math.inf if study.direction.name == "MAXIMIZE" else math.inf
    _drop_losers(study, shared.folder)
    return float(score)


def _trial_folder(shared: _Search, number: int) -> str:
    return str(shared.folder / TRIALS / str(number))


def _is_surplus(trial: optuna.Trial, study: optuna.Study, search: SearchConfig) -> bool:
    """Whether a trial with a lower number does the same, or there are enough of them."""
    earlier = [x for x in study.get_trials(deepcopy=False) if x.number < trial.number]
    if search.trials is not None:
        begun = (TrialState.RUNNING, TrialState.COMPLETE)
        return sum(x.state in begun for x in earlier) >= search.trials
    point = trial.user_attrs.get("point")  # none if another worker took what was waiting
    return point is None or any(
        x.user_attrs.get("point") == point and x.state in _ALIVE for x in earlier
    )


def _sampler(search: SearchConfig, seed: int) -> optuna.samplers.BaseSampler:
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Of points that others are trying it assumes the worst, and so keeps away from them.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _drop_losers(study: optuna.Study, folder: Path) -> None:
    """Deletes the weights of trials that others have beaten; their figures and curves stay."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        return
    best = study.best_trial.number
    for trial in done:
        for name in _WEIGHTS:
            if trial.number != best:
                (folder / TRIALS / str(trial.number) / name).unlink(missing_ok=True)


def _finish(
    shared: _Search, study: optuna.Study, folder: OutputFolder, console: Console
) -> SearchResult:
    """Sees to the winner, and writes and prints what was found."""
    metric = get_task(shared.config.task).metric
    with _alone(folder.path):
        # Another command that took part in the search may have done this already.
        before = folder.read_json(SEARCH_FILE)
        best = study.best_trial
        if best.value is None or not math.isfinite(best.value):
            raise ValueError(
                "search: learning_rates must hold one with which the model learns; got "
                f"{', '.join(f'{x:g}' for x in shared.search.learning_rates)}, and all "
                "trials have diverged. Go on with --resume and smaller --learning-rates."
            )
        winner = before.get("winner", {})
        is_done = (winner.get("kind"), winner.get("trial")) == (shared.search.winner, best.number)
        if not is_done:
            winner = {"kind": shared.search.winner, "trial": best.number}
            winner["metrics"] = _winner_metrics(shared, best, console)
        summary = {
            "metric": metric,
            "direction": study.direction.name.lower(),
            "sampler": shared.search.sampler,
            "study": shared.search.study,
            "settings": study.user_attrs["settings"],
            "best": {PARAMETER: best.params[PARAMETER], f"validation_{metric}": best.value},
            "winner": winner,
            "trials": [_as_dict(trial) for trial in study.get_trials(deepcopy=False)],
        }
        _drop_losers(study, folder.path)
        search_report.draw(study, metric, folder.path)
        folder.write_json(SEARCH_FILE, summary)
    search_report.print_result(console, study, metric, winner, folder.path)
    return SearchResult(folder.path, summary)


def _winner_metrics(shared: _Search, best: FrozenTrial, console: Console) -> dict[str, Any] | None:
    """Puts the winner's model into best/; returns its figures, those on the test set among them."""
    kind, target = shared.search.winner, shared.folder / BEST
    if kind == "none":
        return None
    config = replace(shared.config, learning_rate=best.params[PARAMETER], output=str(target))
    if kind == "retrain":
        search_report.print_line(console, "retraining the winner on the validation set too")
        return finetune(config, Console(quiet=True), train_on_validation=True).metrics
    source = Path(best.user_attrs["folder"])
    if not any((source / name).is_file() for name in _WEIGHTS):
        raise ValueError(
            f"search: winner must be retrain or none where the best model is not; got 'reuse', and "
            f"trial {best.number} left its model in {source} on {best.user_attrs['worker']['host']}"
            ". Run this there, or use --winner retrain."
        )
    shutil.copytree(source, target, dirs_exist_ok=True)
    return evaluate_saved(config, target)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one command at a time see to the winner of a search."""
    with (folder / ".winner.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _as_dict(trial: FrozenTrial) -> dict[str, Any]:
    """A trial as plain values for JSON."""
    attributes = trial.user_attrs
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        PARAMETER: trial.params.get(PARAMETER, attributes.get("point")),
        "value": trial.value,
        "kept_step": attributes.get("kept_step"),
        "seconds": attributes.get("seconds"),
        "worker": attributes.get("worker"),
    }


@dataclass(frozen=True)
class _Worker:
    """A process that runs trials, so that others can see whether it still lives."""

    host: str
    pid: int
    started: float

    @classmethod
    def this(cls) -> _Worker:
        process = psutil.Process()
        return cls(socket.gethostname(), process.pid, process.create_time())

    def is_dead(self) -> bool:
        """Whether it ran on this machine and is gone; its number may serve another by now."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            if process.create_time() != self.started:
                return True
            return process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
