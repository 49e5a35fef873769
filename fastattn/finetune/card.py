"""The model card: README.md in the output folder, in the format of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from fastattn.finetune.config import FinetuneConfig, option_name
from fastattn.finetune.output import CURVES_FILE
from fastattn.finetune.tasks.base import Task

CARD_FILE = "README.md"
Record = Mapping[str, Any]
_MARK = "<!-- Written by fastattn finetune, which replaces it. Delete this line to keep it. -->"

# The tasks' names on the Hub, where they differ.
_PIPELINES = {
    "classification": "text-classification",
    "multilabel": "text-classification",
    "masked-lm": "fill-mask",
}
# What is no part of the recipe.
_NOT_RECIPE = {"output", "overwrite", "resume", "progress", "compare_steps", "tensorboard"}


def write(
    folder: Path,
    config: FinetuneConfig,
    task: Task,
    record: Record,
    metrics: Record,
) -> bool:
    """Writes the card, and returns True; False if there is one that this command did not write."""
    path = folder / CARD_FILE
    if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return False
    path.write_text(_text(folder, config, task, record, metrics), encoding="utf-8")
    return True


def _text(
    folder: Path,
    config: FinetuneConfig,
    task: Task,
    record: Record,
    metrics: Record,
) -> str:
    name = folder.resolve().name
    sizes = record["data"]["sizes"]
    parts = ", ".join(f"{part} {count:,}" for part, count in sizes.items())
    return f"""---
{_header(name, record, task, metrics)}
---

{_MARK}

# {name}

{config.model}, fine-tuned for {task.name} with fastattn. An ordinary checkpoint: plain
Transformers loads it.

```python
{task.usage(folder)}
```

## Results

{_results(task, metrics)}

![Curves]({CURVES_FILE})

## Data

{record["data"]["source"]}. {parts} {task.examples}; none is in two of the sets.

## Recipe

{_recipe(config)}

Trained {metrics["train_steps"]:,} steps of {metrics["global_batch_size"]} {task.examples} in
{metrics["processes"]} process(es); this is the model after step {metrics["kept_step"]:,}.

## Machine and versions

{_machine(record)}
"""


def _header(name: str, record: Record, task: Task, metrics: Record) -> str:
    pipeline = _PIPELINES.get(task.name, task.name)
    results = None
    if f"test_{task.metric}" in metrics:
        results = [
            EvalResult(
                task_type=pipeline,
                dataset_type=record["data"]["source"],
                dataset_name=record["data"]["source"],
                metric_type=task.metric,
                metric_value=round(metrics[f"test_{task.metric}"], 4),
            )
        ]
    header = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["fastattn"],
        model_name=name,
        eval_results=results,
    )
    return header.to_yaml()


def _results(task: Task, metrics: Record) -> str:
    rows = [
        (f"test {task.metric}", metrics.get(f"test_{task.metric}")),
        ("test loss", metrics.get("test_loss")),
        (
            f"{metrics.get('baseline', '')}, {task.metric}",
            metrics.get(f"baseline_{task.metric}"),
        ),
        (f"validation {task.metric}", metrics[f"validation_{task.metric}"]),
        ("validation loss", metrics["validation_loss"]),
        ("mean training loss", metrics["train_loss"]),
    ]
    lines = [f"| {name} | {value:.4f} |" for name, value in rows if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _recipe(config: FinetuneConfig) -> str:
    settings = config.as_dict().items()
    chosen = [(name, value) for name, value in settings if name not in _NOT_RECIPE]
    lines = [f"| `{option_name(name)}` | {value} |" for name, value in chosen if value is not None]
    return "\n".join(["| setting | value |", "| --- | --- |", *lines])


def _machine(record: Record) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items() if value)
    devices = record["gpus"].get("devices", ())
    machine = [record["cpu"]["model"], *(device["name"] for device in devices)]
    return f"{', '.join(map(str, machine))}; {record['os']}. {versions}."
