"""The run behind ``fastattn finetune``: check, load, train, evaluate, save, compare, report."""

from __future__ import annotations

import datetime
import math
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from transformers import Trainer, set_seed

from fastattn import environment
from fastattn.data.augment import augment
from fastattn.errors import DataError
from fastattn.finetune import card, curves, distributed, report
from fastattn.finetune import model as models
from fastattn.finetune.compare import compare_steps
from fastattn.finetune.config import FinetuneConfig, option_name
from fastattn.finetune.distributed import Processes
from fastattn.finetune.output import (
    CURVES_FILE,
    METRICS_FILE,
    RUN_FILE,
    OutputFolder,
    choose_folder,
)
from fastattn.finetune.tasks import get_task
from fastattn.finetune.tasks.base import Encoded, Example, Task, TaskData
from fastattn.finetune.training import choose_device, evaluate, make_trainer, train

# Settings that a resumed run may change: they do not change what the steps so far have done.
_MAY_CHANGE = {
    *("output", "overwrite", "resume", "progress", "threads", "compare_steps", "device"),
    *("epochs", "max_steps", "save_steps", "eval_batch_size", "tensorboard"),
    "recipe",  # a name: what it sets is compared
}


class FinetuneResult(NamedTuple):
    """Where a run was saved, its figures (what metrics.json holds), and what was logged."""

    output: Path
    metrics: dict[str, Any]
    history: curves.History = ()


class _Prepared(NamedTuple):
    """All that a run needs, checked."""

    folder: OutputFolder
    before: dict[str, Any]  # run.json of the run before
    checkpoint: Path | None  # to resume from
    task: Task
    data: TaskData
    tokenizer: Any
    model: Any
    model_source: str
    patch_report: str | None
    train_set: Encoded
    validation_set: Encoded | None
    test_set: Encoded | None  # None: it is not looked at


def finetune(
    config: FinetuneConfig,
    console: Console | None = None,
    *,
    test: bool = True,
    train_on_validation: bool = False,
) -> FinetuneResult:
    """Fine-tunes a model for a task and saves an ordinary checkpoint.

    Everything that can be wrong is checked before anything is written or trained. Where a
    launcher started several processes, all of them call this with the same settings; the first
    one prints and writes.

    Args:
        console: where progress and results are printed. Default: standard output, or nowhere if
            ``config.progress`` is off.
        test: evaluate on the test set. A search does so for its winner only.
        train_on_validation: add the validation set to the training set, once all is chosen.

    Raises:
        ValueError: a setting, the model or the output folder breaks its rule.
        DataError: the data cannot be used.
        PatchError: fastattn cannot accelerate the model; ``patch=False`` trains it as it is.
        ImportError: a library that is needed is not installed.
        OtherProcessError: another process of the run failed.
    """
    started = time.perf_counter()
    processes = distributed.join(on_cpu=config.device == "cpu" or not torch.cuda.is_available())
    if not processes.is_first:
        config, console = replace(config, progress=False), None
    screen = console or Console(quiet=not config.progress, highlight=False)
    prepared = processes.together(
        lambda: _prepare(config, screen, processes, test, train_on_validation)
    )
    with prepared.folder.writing():
        return _run(config, prepared, processes, screen, started)


def check_run(config: FinetuneConfig) -> None:
    """Checks everything that a trial of a search with these settings would; writes nothing.

    Raises:
        ValueError, DataError, PatchError: as for :func:`finetune`.
    """
    silent = Console(quiet=True)
    _prepare(config, silent, Processes(), test=False, train_on_validation=False)


def _run(
    config: FinetuneConfig,
    prepared: _Prepared,
    processes: Processes,
    screen: Console,
    started: float,
) -> FinetuneResult:
    """Trains, and writes all that a run leaves."""
    folder, replaced = prepared.folder, prepared.before.get("files", [])
    record = _run_record(config, prepared, processes)
    processes.together(lambda: _start(config, prepared, record, processes))
    with processes.in_step():
        metrics, trainer = _train(config, prepared, processes)
    history = trainer.state.log_history
    if not processes.is_first:
        return FinetuneResult(folder.path, metrics, history)
    record["files"] = folder.save(
        lambda staging: _save(trainer, prepared, history, metrics, staging), replaced
    )
    # Before the comparison, which could fail: what was trained is not lost.
    folder.write_json(METRICS_FILE, metrics)
    folder.write_json(RUN_FILE, {**record, "status": "trained"})
    if config.patch and config.compare_steps > 0 and processes.size == 1:
        del trainer  # and its optimizer, to make room for two more models
        prepared.model.to("cpu")
        metrics["compare"] = compare_steps(
            config, prepared.task, folder.path, prepared.tokenizer, prepared.train_set
        )
    metrics["total_seconds"] = time.perf_counter() - started
    folder.write_json(METRICS_FILE, metrics)
    if not card.write(folder.path, config, prepared.task, record, metrics):
        report.print_note(screen, f"{card.CARD_FILE} in {folder.path} is yours, and was left alone")
    folder.write_json(RUN_FILE, {**record, "status": "finished", "finished": _now()})
    report.print_result(screen, prepared.task, metrics, folder.path)
    return FinetuneResult(folder.path, metrics, history)


def evaluate_saved(config: FinetuneConfig, folder: Path) -> dict[str, Any]:
    """Evaluates the model of a run on its test set, and adds the figures to what is saved there.

    Args:
        config: the settings of the run.
        folder: what it saved.

    Returns:
        The figures of the run and of the test, as metrics.json then holds them.
    """
    task, output = get_task(config.task), OutputFolder(folder)
    data = task.load_data(config)
    tokenizer = task.load_tokenizer(str(folder), data, config)
    model = task.load_model(str(folder), tokenizer, data, config)
    if config.patch:
        models.accelerate(model)
    test = _encode(config, task, tokenizer, "test", data.test)
    with tempfile.TemporaryDirectory() as scratch:
        trainer, _ = make_trainer(config, task, model, tokenizer, test, None, Path(scratch))
        figures = _test_figures(trainer, task, data, test)
    metrics = {**output.read_json(METRICS_FILE), **figures}
    metrics["notes"] += _notes(test=test)
    output.write_json(METRICS_FILE, metrics)
    card.write(folder, config, task, output.read_run(), metrics)
    return metrics


def _prepare(
    config: FinetuneConfig,
    console: Console,
    processes: Processes,
    test: bool,
    train_on_validation: bool,
) -> _Prepared:
    config.check()
    choose_device(config)
    curves.require_libraries(config.tensorboard)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    folder = choose_folder(config.output, config.resume)
    checkpoint, before = None, folder.read_run()
    if config.resume:
        checkpoint = folder.check_resumable(config.as_dict(), _MAY_CHANGE)
        _check_processes(before, processes)
    else:
        folder.check_free(config.overwrite)
    task = get_task(config.task)
    task.check(config)
    source = models.find_model(config.model)
    data = task.load_data(config)
    if train_on_validation:
        data = _with_validation(data)
    for setting in ("patience", "eval_steps"):
        value = getattr(config, setting)
        if value is not None and not data.validation:
            raise ValueError(
                f"finetune: {setting} must be given together with a validation set; got {value} "
                f"and data without one. Leave {option_name(setting)} out, or give the data a "
                "validation set."
            )
    if not test and not data.validation:
        raise ValueError(
            f"search: data must have a validation set, which decides; got none in {config.data}. "
            "Set --validation-size."
        )
    tokenizer = task.load_tokenizer(source, data, config)
    set_seed(config.seed)  # a new head is drawn from it
    model = task.load_model(source, tokenizer, data, config)
    if not config.resume:
        folder.check_room(_least_bytes(model))
    patch_report = models.accelerate(model) if config.patch else None
    report.print_start(console, config, task, folder.path, data, model, patch_report, processes)
    examples = data.train
    if config.augment > 0:
        assert task.augmented_field is not None
        examples = augment(examples, task.augmented_field, config.augment, config.seed)
    held_out = {"validation": data.validation, "test": data.test if test else ()}
    validation_set, test_set = (
        _encode(config, task, tokenizer, name, rows) if rows else None
        for name, rows in held_out.items()
    )
    train_set = _encode(config, task, tokenizer, "training", examples)
    for encoded in (train_set, validation_set, test_set):
        models.check_token_ids(model, tokenizer, encoded.features if encoded else ())
    return _Prepared(
        folder=folder,
        before=before,
        checkpoint=checkpoint,
        task=task,
        data=data,
        tokenizer=tokenizer,
        model=model,
        model_source=source,
        patch_report=patch_report,
        train_set=train_set,
        validation_set=validation_set,
        test_set=test_set,
    )


def _least_bytes(model: Any) -> int:
    """The bytes that a run surely writes: a checkpoint, with AdamW's two moments, and the model."""
    parameters = list(model.parameters())
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    return 2 * sum(p.nbytes for p in parameters) + 2 * trained


def _encode(
    config: FinetuneConfig, task: Task, tokenizer: Any, name: str, examples: Sequence[Example]
) -> Encoded:
    """Returns the features of a set.

    Raises:
        DataError: there are none.
    """
    encoded = task.encode(examples, tokenizer, config)
    special = {*tokenizer.all_special_ids}  # the unknown token is one of them
    if all(special.issuperset(feature["input_ids"]) for feature in encoded.features):
        raise DataError(
            f"data: the {name} set must hold {task.examples} of which the tokenizer makes tokens; "
            f"got {len(examples):,} without any that it knows. Check what the texts are made of, "
            "and that the tokenizer is that of the model."
        )
    return encoded


def _check_processes(before: dict[str, Any], processes: Processes) -> None:
    size = before.get("processes", processes.size)
    if size != processes.size:
        raise ValueError(
            f"finetune: a run must be resumed with as many processes as before, {size}; got "
            f"{processes.size}. Start as many, or start a new run in another folder."
        )


def _with_validation(data: TaskData) -> TaskData:
    sizes = data.report["sizes"]
    total = sizes["train"] + sizes["validation"]
    report = {**data.report, "sizes": {**sizes, "train": total, "validation": 0}}
    return data._replace(train=[*data.train, *data.validation], validation=[], report=report)


def _start(
    config: FinetuneConfig, prepared: _Prepared, record: dict[str, Any], processes: Processes
) -> None:
    """Begins to write."""
    if not processes.is_first:
        return
    before = prepared.before
    if config.resume:
        record["earlier_commands"] = [*before.get("earlier_commands", []), before.get("command")]
    prepared.folder.start(config.resume)
    prepared.folder.write_json(RUN_FILE, {**record, "files": before.get("files", [])})


def _train(
    config: FinetuneConfig, prepared: _Prepared, processes: Processes
) -> tuple[dict[str, Any], Trainer]:
    """Trains and evaluates; returns the figures and the Trainer."""
    task, data = prepared.task, prepared.data
    train_set, validation, test = prepared.train_set, prepared.validation_set, prepared.test_set
    trainer, progress = make_trainer(
        config,
        task,
        prepared.model,
        prepared.tokenizer,
        train_set,
        validation,
        prepared.folder.path,
        processes.size,
    )
    train_loss = train(trainer, prepared.checkpoint)
    metrics = {
        "task": task.name,
        "metric": task.metric,
        **({} if test is None else _test_figures(trainer, task, data, test)),
        **_choice(config, trainer, task),
        "notes": _notes(train=train_set, validation=validation, test=test),
        "train_loss": train_loss,
        f"train_{task.examples}": len(data.train),
        f"augmented_{task.examples}": len(train_set.examples) - len(data.train),
        "train_steps": trainer.state.global_step,
        "resumed_from_step": progress.first_step,
        "train_seconds": progress.train_seconds,
        "train_tokens": progress.tokens,
        "train_tokens_per_second": progress.tokens_per_second,
        "tokens_counted": "without padding",
        "max_length": config.max_length,
        "batch_size": config.batch_size,
        "processes": processes.size,
        "global_batch_size": config.batch_size * processes.size,
        "device": str(trainer.args.device),
        "threads": torch.get_num_threads(),
        "patched": config.patch,
        **peak_memory(),
    }
    if _has_diverged(metrics):
        metrics["notes"].append(
            "the loss is not a number: training has diverged, and the model is of no use; train "
            "again with a smaller --learning-rate, from a model whose weights are numbers"
        )
    return metrics, trainer


def _has_diverged(metrics: dict[str, Any]) -> bool:
    losses = (metrics.get(name) for name in ("train_loss", "validation_loss", "test_loss"))
    return any(loss is not None and not math.isfinite(loss) for loss in losses)


def _test_figures(trainer: Trainer, task: Task, data: TaskData, test: Encoded) -> dict[str, Any]:
    result = evaluate(trainer, task, test)
    baseline = task.baseline(data, test)
    return {
        **{f"test_{name}": value for name, value in result.metrics.items()},
        "test_loss": result.loss,
        f"test_{task.examples}": result.num_examples,
        f"baseline_{task.metric}": baseline.score,
        "baseline": baseline.words,
        "test_seconds": result.seconds,
        "test_tokens_per_second": result.num_tokens / result.seconds,
    }


def _choice(config: FinetuneConfig, trainer: Trainer, task: Task) -> dict[str, Any]:
    """Which step's model was kept, how it did on the validation set, and whether training ended."""
    history, state = trainer.state.log_history, trainer.state
    steps, scores = curves.points(history, f"eval_{task.metric}")
    kept = None
    if scores:
        best = max(scores) if task.greater_is_better else min(scores)
        kept = scores.index(best) if config.keep == "best" else len(scores) - 1
    return {
        f"validation_{task.metric}": None if kept is None else scores[kept],
        "validation_loss": None if kept is None else curves.points(history, "eval_loss")[1][kept],
        "kept_step": state.global_step if kept is None else steps[kept],
        "stopped_early": config.patience is not None and state.global_step < state.max_steps,
    }


def _notes(**sets: Encoded | None) -> list[str]:
    """What the features of each set lack."""
    return [
        f"{name}: {note}" for name, encoded in sets.items() if encoded for note in encoded.notes
    ]


def peak_memory() -> dict[str, int | None]:
    """Returns the most memory this process has held, in bytes: main memory, and the GPU's."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_bytes": resident, "peak_gpu_memory_bytes": gpu}


def _run_record(
    config: FinetuneConfig, prepared: _Prepared, processes: Processes
) -> dict[str, Any]:
    """What is needed to understand a run later, or to do it again."""
    return {
        "status": "started",
        "started": _now(),
        "command": shlex.join(sys.argv),
        "settings": config.as_dict(),
        "processes": processes.size,
        "output": str(prepared.folder.path.resolve()),
        "model": prepared.model_source,
        "label_names": prepared.data.label_names,
        "data": prepared.data.report,
        "patch": prepared.patch_report,
        "git_commit": environment.git_commit(),
        **environment.collect(),
    }


def _save(
    trainer: Trainer,
    prepared: _Prepared,
    history: curves.History,
    metrics: dict[str, Any],
    folder: Path,
) -> None:
    trainer.model.save_pretrained(folder)
    prepared.tokenizer.save_pretrained(folder)
    kept = metrics["kept_step"] if prepared.data.validation else None
    curves.draw(history, prepared.task.metric, kept, folder / CURVES_FILE)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
