"""What a run prints."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastattn import data
from fastattn.finetune.config import FinetuneConfig


def print_start(
    console: Console,
    config: FinetuneConfig,
    folder: Path,
    splits: data.Splits,
    model: Any,
    patch_report: str | None,
) -> None:
    """Says what is about to be trained, on what, and with which kernels."""
    sizes = splits.report["sizes"]
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    _print(console, f"data      {splits.report['source']}")
    for name, counts in splits.report.items():
        if name.endswith("_rows"):
            dropped = {reason: n for reason, n in counts.items() if reason != "read" and n}
            words = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in dropped.items())
            part = name.removesuffix("_rows")
            _print(
                console,
                f"          {part}: {counts['read']:,} rows read, dropped: {words or 'none'}",
            )
    for note in splits.report["notes"]:
        _print(console, f"          note: {note}")
    _print(
        console,
        f"splits    train {sizes['train']:,} | validation {sizes['validation']:,} | "
        f"test {sizes['test']:,} texts, none in two of them; classes: "
        f"{', '.join(splits.label_names[:8])}",
    )
    _print(
        console,
        f"model     {config.model}: {type(model).__name__}, {parameters:.1f} M parameters",
    )
    first = patch_report.splitlines()[0] if patch_report else "off: stock Transformers"
    _print(console, f"kernels   {first}; {torch.get_num_threads()} threads")
    _print(
        console,
        f"training  {config.epochs:g} epoch(s), batch size {config.batch_size}, at most "
        f"{config.max_length} tokens a text, learning rate {config.learning_rate:g}, "
        f"seed {config.seed}",
    )
    _print(console, f"output    {folder}\n")


def print_result(console: Console, metrics: dict[str, Any], folder: Path) -> None:
    """Prints the figures of a run, and what to type next."""
    accuracy, texts = metrics["test_accuracy"], metrics["test_texts"]
    interval = 1.96 * math.sqrt(accuracy * (1 - accuracy) / texts)
    rows = [
        (
            "test accuracy",
            f"{accuracy:.3f} ± {interval:.3f} (95 %) on {texts:,} held-out texts; "
            f"always the commonest class: {metrics['test_majority_accuracy']:.3f}",
        ),
        (
            "training",
            f"{metrics['train_seconds']:.1f} s for {metrics['train_texts']:,} texts, "
            f"{metrics['train_tokens_per_second']:,.0f} tokens/s (padding not counted)",
        ),
        (
            "evaluation",
            f"{metrics['test_seconds']:.1f} s, {metrics['test_tokens_per_second']:,.0f} tokens/s",
        ),
        ("peak memory", _memory(metrics)),
    ]
    if "compare" in metrics:
        rows += [
            ("training step" if index == 0 else "", line)
            for index, line in enumerate(_comparison(metrics["compare"]))
        ]
    rows.append(("total", f"{metrics['total_seconds']:.1f} s"))
    console.print()
    for name, words in rows:
        _print(console, f"{name:15}{words}")
    _print(console, _next_steps(folder))


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


def _next_steps(folder: Path) -> str:
    where = shlex.quote(str(folder))
    return f"""
Saved in {folder}: the model and its tokenizer, metrics.json, run.json.

What to type next (activate the environment first if there is one: . .venv/bin/activate)
  Use it, with plain Transformers:
    python -c "from transformers import pipeline
    classify = pipeline('text-classification', {str(folder)!r}, truncation=True)
    print(classify(['A film to remember.', 'Two hours I will not get back.']))"
  Train on your own data, a CSV file with the columns text and label:
    fastattn finetune --data reviews.csv --output runs/mine
  See all settings, check this installation, run the tests (in the source folder):
    fastattn finetune --help
    fastattn check
    make test
  Go on with this run for longer:
    fastattn finetune --resume --output {where} --epochs 2"""
