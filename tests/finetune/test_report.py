"""What a run prints."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from fastattn.finetune.report import print_result
from fastattn.finetune.tasks import get_task

METRICS = {
    **{"test_masked_accuracy": 0.148, "baseline_masked_accuracy": 0.045, "baseline": "'.'"},
    **{"validation_masked_accuracy": 0.159, "test_loss": 5.8, "test_texts": 60},
    **{"train_texts": 200, "train_steps": 142, "kept_step": 142, "stopped_early": False},
    **{"train_seconds": 10.0, "train_tokens_per_second": 100.0, "test_seconds": 1.0},
    **{"test_tokens_per_second": 100.0, "total_seconds": 12.0, "notes": []},
    **{"peak_memory_bytes": 2**30, "peak_gpu_memory_bytes": None},
}


def test_the_figures_are_in_one_column_however_long_a_metric_is_called() -> None:
    written = io.StringIO()
    console = Console(file=written, width=200, highlight=False)
    print_result(console, get_task("masked-lm"), METRICS, Path("run"))
    lines = written.getvalue().splitlines()
    score = next(line for line in lines if line.startswith("test masked accuracy"))
    training = next(line for line in lines if line.startswith("training"))
    assert score.index("0.148") == training.index("10.0 s") == len("test masked accuracy") + 2
