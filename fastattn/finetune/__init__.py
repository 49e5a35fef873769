"""Fine-tuning a BERT on labelled text with the accelerated model: ``fastattn finetune``.

    from fastattn.finetune import FinetuneConfig, finetune

    result = finetune(FinetuneConfig(data="reviews.csv", output="runs/reviews"))
    result.metrics["test_accuracy"]

Thin over Transformers' stock Trainer and collator; :func:`fastattn.patch` does the work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastattn.finetune.config import FinetuneConfig

if TYPE_CHECKING:
    from fastattn.finetune.run import FinetuneResult, finetune

__all__ = ["FinetuneConfig", "FinetuneResult", "finetune"]


def __getattr__(name: str) -> Any:
    # The command line reads the defaults of FinetuneConfig and must not wait for Transformers.
    if name in ("FinetuneResult", "finetune"):
        return getattr(importlib.import_module("fastattn.finetune.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
