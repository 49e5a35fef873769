"""The run behind ``fastattn finetune``: check, load, train, evaluate, save, compare, report."""

from __future__ import annotations

import datetime
import resource
import shlex
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from transformers import Trainer, set_seed

from fastattn import environment
from fastattn.finetune import model as models
from fastattn.finetune import report
from fastattn.finetune.compare import compare_steps
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.output import METRICS_FILE, RUN_FILE, OutputFolder, choose_folder
from fastattn.finetune.tasks import get_task
from fastattn.finetune.tasks.base import Encoded, Task, TaskData
from fastattn.finetune.training import choose_device, evaluate, make_trainer, train

# Settings that a resumed run may change: they do not change what the steps so far have done.
_MAY_CHANGE = {
    *("output", "overwrite", "resume", "progress", "threads", "compare_steps", "device"),
    *("epochs", "max_steps", "save_steps", "eval_batch_size"),
}


class FinetuneResult(NamedTuple):
    """Where a run was saved, and its figures: what metrics.json holds."""

    output: Path
    metrics: dict[str, Any]


class _Prepared(NamedTuple):
    """All that a run needs, checked."""

    folder: OutputFolder
    checkpoint: Path | None  # to resume from
    task: Task
    data: TaskData
    tokenizer: Any
    model: Any
    model_source: str
    patch_report: str | None


def finetune(config: FinetuneConfig, console: Console | None = None) -> FinetuneResult:
    """Fine-tunes a model for a task and saves an ordinary checkpoint.

    Everything that can be wrong is checked before anything is written or trained.

    Args:
        console: where progress and results are printed. Default: standard output, or nowhere if
            ``config.progress`` is off.

    Raises:
        ValueError: a setting, the model or the output folder breaks its rule.
        DataError: the data cannot be used.
        PatchError: fastattn cannot accelerate the model; ``patch=False`` trains it as it is.
    """
    started = time.perf_counter()
    console = console or Console(quiet=not config.progress, highlight=False)
    config.check()
    choose_device(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    prepared = _prepare(config, console)
    folder = prepared.folder
    before = folder.read_run()
    record = _run_record(config, prepared)
    if config.resume:
        earlier = [*before.get("earlier_commands", []), before.get("command")]
        record["earlier_commands"] = earlier
    replaced = before.get("files", [])
    folder.start(config.resume)
    folder.write_json(RUN_FILE, {**record, "files": replaced})

    metrics, trainer, train_set = _train(config, prepared)
    record["files"] = folder.save(
        lambda staging: _save(trainer.model, prepared.tokenizer, staging), replaced
    )
    # Before the comparison, which could fail: what was trained is not lost.
    folder.write_json(METRICS_FILE, metrics)
    folder.write_json(RUN_FILE, {**record, "status": "trained"})
    if config.patch and config.compare_steps > 0:
        del trainer  # and its optimizer, to make room for two more models
        prepared.model.to("cpu")
        metrics["compare"] = compare_steps(
            config, prepared.task, folder.path, prepared.tokenizer, train_set
        )
    metrics["total_seconds"] = time.perf_counter() - started
    folder.write_json(METRICS_FILE, metrics)
    folder.write_json(RUN_FILE, {**record, "status": "finished", "finished": _now()})
    report.print_result(console, prepared.task, metrics, folder.path)
    return FinetuneResult(folder.path, metrics)


def _prepare(config: FinetuneConfig, console: Console) -> _Prepared:
    folder = choose_folder(config.output, config.resume)
    checkpoint = None
    if config.resume:
        checkpoint = folder.check_resumable(config.as_dict(), _MAY_CHANGE)
    else:
        folder.check_free(config.overwrite)
    task = get_task(config.task)
    source = models.find_model(config.model)
    data = task.load_data(config)
    tokenizer = task.load_tokenizer(source, data, config)
    set_seed(config.seed)  # a new head is drawn from it
    model = task.load_model(source, tokenizer, data, config)
    patch_report = models.accelerate(model) if config.patch else None
    report.print_start(console, config, task, folder.path, data, model, patch_report)
    return _Prepared(folder, checkpoint, task, data, tokenizer, model, source, patch_report)


def _train(config: FinetuneConfig, prepared: _Prepared) -> tuple[dict[str, Any], Trainer, Encoded]:
    """Trains and evaluates; returns the figures, the Trainer and the training set."""
    task, data = prepared.task, prepared.data
    train_set, validation, test = (
        task.encode(examples, prepared.tokenizer, config) if examples else None
        for examples in (data.train, data.validation, data.test)
    )
    assert train_set is not None and test is not None
    trainer, progress = make_trainer(
        config,
        task,
        prepared.model,
        prepared.tokenizer,
        train_set,
        validation,
        prepared.folder.checkpoints,
    )
    train_loss = train(trainer, prepared.checkpoint)
    result = evaluate(trainer, task, test)
    baseline = task.baseline(data)
    metrics: dict[str, Any] = {
        "task": task.name,
        "metric": task.metric,
        **{f"test_{name}": value for name, value in result.metrics.items()},
        "test_loss": result.loss,
        f"test_{task.examples}": result.num_examples,
        f"baseline_{task.metric}": baseline.score,
        "baseline": baseline.words,
        "notes": _notes(train=train_set, validation=validation, test=test),
        f"validation_{task.metric}": _last(trainer, f"eval_{task.metric}"),
        "train_loss": train_loss,
        f"train_{task.examples}": len(data.train),
        "train_steps": trainer.state.global_step,
        "resumed_from_step": progress.first_step,
        "train_seconds": progress.train_seconds,
        "train_tokens": progress.tokens,
        "train_tokens_per_second": progress.tokens / progress.train_seconds,
        "test_seconds": result.seconds,
        "test_tokens_per_second": result.num_tokens / result.seconds,
        "tokens_counted": "without padding",
        "max_length": config.max_length,
        "batch_size": config.batch_size,
        "device": str(trainer.args.device),
        "threads": torch.get_num_threads(),
        "patched": config.patch,
        **peak_memory(),
    }
    return metrics, trainer, train_set


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


def _last(trainer: Trainer, name: str) -> float | None:
    values = [entry[name] for entry in trainer.state.log_history if name in entry]
    return values[-1] if values else None


def _run_record(config: FinetuneConfig, prepared: _Prepared) -> dict[str, Any]:
    """What is needed to understand a run later, or to do it again."""
    return {
        "status": "started",
        "started": _now(),
        "command": shlex.join(sys.argv),
        "settings": config.as_dict(),
        "output": str(prepared.folder.path.resolve()),
        "model": prepared.model_source,
        "label_names": prepared.data.label_names,
        "data": prepared.data.report,
        "patch": prepared.patch_report,
        "git_commit": environment.git_commit(),
        **environment.collect(),
    }


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
