"""What a run prints."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.curves import writes_tensorboard
from fastattn.finetune.distributed import Processes
from fastattn.finetune.output import CURVES_FILE
from fastattn.finetune.tasks import DEFAULT_TASK
from fastattn.finetune.tasks.base import Task, TaskData


def print_start(
    console: Console,
    config: FinetuneConfig,
    task: Task,
    folder: Path,
    data: TaskData,
    model: Any,
    patch_report: str | None,
    processes: Processes,
) -> None:
    """Says what is about to be trained, on what, and with which kernels."""
    sizes = data.report["sizes"]
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    _print(console, f"data      {data.report['source']}")
    for name, counts in data.report.items():
        if name.endswith("_rows"):
            dropped = {reason: n for reason, n in counts.items() if reason != "read" and n}
            words = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in dropped.items())
            part = name.removesuffix("_rows")
            _print(
                console,
                f"          {part}: {counts['read']:,} rows read, dropped: {words or 'none'}",
            )
    for note in data.report["notes"]:
        _print(console, f"          note: {note}")
    _print(
        console,
        f"splits    train {sizes['train']:,} | validation {sizes['validation']:,} | "
        f"test {sizes['test']:,} {task.examples}, none in two of them{_classes(data)}",
    )
    _print(
        console,
        f"model     {config.model}: {type(model).__name__}, {parameters:.1f} M parameters",
    )
    first = patch_report.splitlines()[0] if patch_report else "off: stock Transformers"
    _print(console, f"kernels   {first}; {torch.get_num_threads()} threads")
    _print(
        console,
        f"training  {config.duration()}, batch size {_batch(config, processes)}, at most "
        f"{config.max_length} tokens a text, learning rate {config.learning_rate:g}, "
        f"seed {config.seed}",
    )
    for line in _choosing(config, task, data):
        _print(console, f"          {line}")
    if processes.size > 1 and config.patch and config.compare_steps > 0:
        _print(console, "          no comparison with stock Transformers: it is for one process")
    _print(console, f"curves    {CURVES_FILE}; {_tensorboard(config, folder)}")
    _print(console, f"output    {folder}\n")


def print_note(console: Console, note: str) -> None:
    """Says what else the user should know."""
    _print(console, f"note: {note}")


def print_result(console: Console, task: Task, metrics: dict[str, Any], folder: Path) -> None:
    """Prints the figures of a run, and what to type next."""
    metric = task.metric.replace("_", " ")
    validation = metrics[f"validation_{task.metric}"]
    rows = [(f"test {metric}", _score(task, metrics))] if "test_loss" in metrics else []
    if task.further_metrics and rows:
        rows.append(("", _further(task, metrics)))
    if validation is not None:
        rows.append(("validation", f"{metric} {validation:.3f}, {_kept(metrics)}"))
    rows += [
        (
            "training",
            f"{metrics['train_seconds']:.1f} s for {metrics[f'train_{task.examples}']:,} "
            f"{task.examples}, "
            f"{metrics['train_tokens_per_second']:,.0f} tokens/s (padding not counted)",
        ),
        ("peak memory", _memory(metrics)),
    ]
    if "test_loss" in metrics:
        speed = f"{metrics['test_tokens_per_second']:,.0f} tokens/s"
        rows.insert(-1, ("evaluation", f"{metrics['test_seconds']:.1f} s, {speed}"))
    if "compare" in metrics:
        rows += [
            ("training step" if index == 0 else "", line)
            for index, line in enumerate(_comparison(metrics["compare"]))
        ]
    rows += [("note" if index == 0 else "", note) for index, note in enumerate(metrics["notes"])]
    rows.append(("total", f"{metrics['total_seconds']:.1f} s"))
    console.print()
    width = max(len(name) for name, _ in rows) + 2
    for name, words in rows:
        _print(console, f"{name:{width}}{words}")
    _print(console, _next_steps(task, folder))


def _batch(config: FinetuneConfig, processes: Processes) -> str:
    """The number of texts in a step, all processes together."""
    if processes.size == 1:
        return str(config.batch_size)
    total = config.batch_size * processes.size
    return f"{total} ({config.batch_size} in each of {processes.size} processes)"


def _choosing(config: FinetuneConfig, task: Task, data: TaskData) -> list[str]:
    """What is done against overfitting, and which model is kept."""
    extras = []
    if config.label_smoothing > 0:
        extras.append(f"labels smoothed by {config.label_smoothing:g}")
    if config.augment > 0:
        extras.append(f"{config.augment} altered copies of each training text")
    lines = [", ".join(extras)] if extras else []
    if data.validation:
        metric = task.metric.replace("_", " ")
        every = "epoch" if config.eval_steps is None else f"{config.eval_steps} steps"
        kept = f"the best by validation {metric}" if config.keep == "best" else "the last model"
        stop = ""
        if config.patience is not None:
            stop = f"; stops after {config.patience} evaluation(s) without a better one"
        lines.append(f"evaluates every {every}, keeps {kept}{stop}")
    return lines


def _tensorboard(config: FinetuneConfig, folder: Path) -> str:
    if writes_tensorboard(config.tensorboard):
        return f"tensorboard --logdir {shlex.quote(str(folder))}"
    if config.tensorboard is False:
        return "not for TensorBoard"
    return "not for TensorBoard, which is not installed (pip install tensorboard)"


def _kept(metrics: dict[str, Any]) -> str:
    steps, kept = metrics["train_steps"], metrics["kept_step"]
    early = ", where training stopped early" if metrics["stopped_early"] else ""
    return f"of the model kept, after step {kept:,} of {steps:,}{early}"


def _classes(data: TaskData) -> str:
    return f"; classes: {', '.join(data.label_names[:8])}" if data.label_names else ""


def _score(task: Task, metrics: dict[str, Any]) -> str:
    """The metric on the test set, its interval if it is a share, and what it must beat."""
    score, count = metrics[f"test_{task.metric}"], metrics[f"test_{task.examples}"]
    interval = ""
    if task.metric_is_share:
        interval = f" ± {1.96 * math.sqrt(score * (1 - score) / count):.3f} (95 %)"
    return (
        f"{score:.3f}{interval} on {count:,} held-out {task.examples}; "
        f"{metrics['baseline']}: {metrics[f'baseline_{task.metric}']:.3f}"
    )


def _further(task: Task, metrics: dict[str, Any]) -> str:
    found = ((name, metrics.get(f"test_{name}")) for name in task.further_metrics)
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}" for name, value in found if value is not None
    )


def _print(console: Console, line: str) -> None:
    """Prints a line as it is; where the terminal is too narrow, the terminal wraps it."""
    console.print(line, markup=False, soft_wrap=True)


def _memory(metrics: dict[str, Any]) -> str:
    text = f"{metrics['peak_memory_bytes'] / 2**20:,.0f} MiB"
    gpu = metrics["peak_gpu_memory_bytes"]
    return text if gpu is None else f"{text}, GPU {gpu / 2**20:,.0f} MiB"


def _comparison(compare: dict[str, Any]) -> list[str]:
    """The step ratio, and everything it depends on."""
    rows = compare["shapes"][0][0]
    lengths = sorted({length for _, length in compare["shapes"]})
    span = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}"
    padded = sum(rows * length for rows, length in compare["shapes"])
    padding = 1 - sum(compare["real_tokens"]) / padded
    hidden, attention = compare["dropout"]
    threads = f", {compare['threads']} threads" if compare["device"] == "cpu" else ""
    return [
        f"{compare['ratio']:.2f} times as fast as stock Transformers "
        f"({compare['stock_attention']}): {compare['fastattn_step_ms']:,.0f} instead of "
        f"{compare['stock_step_ms']:,.0f} ms",
        f"median of {len(compare['shapes'])} steps each, taken in turn, with AdamW; batches of "
        f"{rows} x {span} tokens, {padding:.0%} of them padding",
        f"{compare['dtype']}, dropout {hidden:g} (attention {attention:g}), on "
        f"{compare['device']}{threads}; without dropout logits differ by "
        f"{compare['largest_logit_difference']:.0e}",
    ]


def _next_steps(task: Task, folder: Path) -> str:
    where = shlex.quote(str(folder))
    file, kind = task.own_file
    # Not indented: Python would refuse its second line.
    usage = task.usage(folder)
    return f"""
Saved in {folder}: the model and its tokenizer, curves.png, metrics.json, run.json, README.md.

What to type next (activate the environment first if there is one: . .venv/bin/activate)
  Use it, with plain Transformers:
python -c "{usage}"
  Train on your own data, {kind} with {task.columns}:
    fastattn finetune{_task_option(task)} --data {file} --output runs/mine
  See all settings, check this installation, run the tests (in the source folder):
    fastattn finetune --help
    fastattn check
    make test
  Go on with this run for longer:
    fastattn finetune{_task_option(task)} --resume --output {where} --epochs 2"""


def _task_option(task: Task) -> str:
    return "" if task.name == DEFAULT_TASK else f" --task {task.name}"
