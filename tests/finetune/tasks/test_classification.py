"""More than two classes."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from transformers import EvalPrediction

from fastattn.finetune import FinetuneConfig, finetune
from fastattn.finetune.demos import messages
from fastattn.finetune.tasks import get_task


def test_macro_f1_counts_every_class_the_same() -> None:
    targets = np.array([0] * 8 + [1, 2])
    always_0 = np.eye(3)[np.zeros(10, dtype=int)]
    task = get_task("classification")
    scores = task.scorer(None, None)(EvalPrediction(always_0, targets))  # type: ignore[arg-type]
    assert scores == {"accuracy": 0.8, "macro_f1": pytest.approx((2 * 0.8 / 1.8) / 3)}


def test_three_classes(write: Callable[..., str], settings: Callable[..., FinetuneConfig]) -> None:
    classes = ("account", "damage", "praise")
    rows = [
        {"text": row["text"], "label": row["labels"][0]}
        for row in messages.rows("train")
        if len(row["labels"]) == 1 and row["labels"][0] in classes
    ]
    data = write("messages.jsonl", rows[:60])
    config = settings("classification", data=data, max_steps=2)
    result = finetune(config)
    saved = json.loads((result.output / "config.json").read_text(encoding="utf-8"))
    assert saved["label2id"] == {name: index for index, name in enumerate(classes)}
    assert 0 <= result.metrics["test_macro_f1"] <= 1
    assert 1 / 3 <= result.metrics["baseline_accuracy"] < 1
