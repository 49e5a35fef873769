"""Whole runs of the tasks, tiny: what they save is an ordinary checkpoint, patched or not."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from fastattn.finetune import FinetuneConfig, finetune
from fastattn.finetune.tasks import get_task

TASKS = {
    "multilabel": ("micro_f1", "always the commonest", "'label': "),
    "token-classification": ("f1", "commonest tag in training", ""),
    "question-answering": ("f1", "an answer", ""),
}


def run_printed_python(output: str) -> str:
    """Types the Python that a run prints, and returns what that prints."""
    start = output.index('python -c "')
    script = output[start : output.index('"\n', start) + 1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("task", TASKS)
def test_patched_and_stock_learn_the_same_and_the_model_is_an_ordinary_one(
    settings: Callable[..., FinetuneConfig], task: str, tmp_path: Path
) -> None:
    own = {"threshold": 0.1} if task == "multilabel" else {}
    config = settings(task, dropout=0.0, compare_steps=1, **own)
    stock = finetune(replace(config, output=str(tmp_path / "stock"), patch=False, compare_steps=0))
    printed = io.StringIO()
    ours = finetune(replace(config, progress=True), Console(file=printed, width=200))

    assert ours.metrics["patched"] and not stock.metrics["patched"]
    weights = [load_file(run.output / "model.safetensors") for run in (ours, stock)]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
    assert ours.metrics["compare"]["largest_logit_difference"] < 1e-5

    metric, baseline, answer = TASKS[task]
    metrics = json.loads((ours.output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["metric"] == metric
    assert 0 <= metrics[f"test_{metric}"] <= 1
    assert 0 <= metrics[f"baseline_{metric}"] <= 1
    assert baseline in metrics["baseline"] or "question" in metrics["baseline"]
    assert all(
        name in printed.getvalue() for name in ("test f1", "held-out") if task != "multilabel"
    )

    config_json = json.loads((ours.output / "config.json").read_text(encoding="utf-8"))
    head = get_task(task).auto_model.__name__.removeprefix("AutoModel")
    assert config_json["architectures"] == [f"Bert{head}"]
    assert answer in run_printed_python(printed.getvalue())


@pytest.mark.parametrize("task", TASKS)
def test_data_of_its_own_is_the_same_every_time_and_no_set_shares_a_text(task: str) -> None:
    config = FinetuneConfig(task=task)
    first, again = (get_task(task).load_data(config) for _ in range(2))
    assert first == again
    key = {"multilabel": "text", "token-classification": "tokens", "question-answering": "context"}
    texts = [
        {str(row[key[task]]) for row in rows}
        for rows in (first.train, first.validation, first.test)
    ]
    assert all(texts) and not (texts[0] & texts[2] or texts[0] & texts[1] or texts[1] & texts[2])


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_keeps_its_sets(
    settings: Callable[..., FinetuneConfig], write: Callable[..., str], task: str, tmp_path: Path
) -> None:
    rows = get_task(task).load_data(settings(task)).train
    half = len(rows) // 2
    for name, part in (("train", rows), ("validation", rows[:4]), ("test", rows[half:])):
        write(f"sets/{name}.jsonl", list(part))
    data = get_task(task).load_data(settings(task, data=str(tmp_path / "sets")))
    assert len(data.test) == len(rows[half:])
    # What is held out is not trained on as well.
    assert not [row for row in data.train if row in data.test or row in data.validation]
    assert data.report["train_rows"]["also_held_out"] >= len(data.test)


@pytest.mark.parametrize("task", TASKS)
def test_the_test_set_is_encoded_where_it_is_used_alone(
    settings: Callable[..., FinetuneConfig], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial of a search does not look at it."""
    config = settings(task)
    kind = type(get_task(task))
    encode, encoded = kind.encode, list[int]()

    def counting(self: Any, examples: Any, tokenizer: Any, config: Any) -> Any:
        encoded.append(len(examples))
        return encode(self, examples, tokenizer, config)

    monkeypatch.setattr(kind, "encode", counting)
    result = finetune(replace(config, max_steps=1), test=False)
    run = json.loads((result.output / "run.json").read_text(encoding="utf-8"))
    sizes = run["data"]["sizes"]
    assert sorted(encoded) == sorted([sizes["train"], sizes["validation"]])
    assert not any(note.startswith("test:") for note in result.metrics["notes"])
