"""What a run uses where nothing is asked for: its task's own, and its model's own."""

from __future__ import annotations

from typing import Any

PACKAGED_MODEL = "minilm-l6"

# Small models made from scratch (fastattn.finetune.fresh): what each of them is.
FRESH_MODELS = {
    "marian-tiny": "an encoder-decoder with a subword tokenizer of the training texts",
    "esm-tiny": "an encoder of protein sequences",
}

_USUAL: dict[str, Any] = {
    "model": PACKAGED_MODEL,
    "epochs": 1.0,
    "batch_size": 8,
    "eval_batch_size": 32,
    "learning_rate": 1e-4,
    "max_length": 512,
    "truncation_side": "left",
}
_OF_TASKS: dict[str, dict[str, Any]] = {
    # Every label is rare: for some 150 steps the loss stays where no label is ever given.
    "multilabel": {"epochs": 3.0, "batch_size": 16, "learning_rate": 2e-4},
    "token-classification": {"truncation_side": "right"},
    "question-answering": {"truncation_side": "right"},
    # A new head on an old body. Every token has a logit for each of 30,000 words, 0.25 GB for 16
    # texts in evaluation.
    "masked-lm": {
        "batch_size": 4,
        "eval_batch_size": 16,
        "learning_rate": 5e-4,
        "max_length": 128,
        "truncation_side": "right",
    },
    "translation": {
        "model": "marian-tiny",
        "epochs": 3.0,
        "batch_size": 16,
        "max_length": 128,
        "truncation_side": "right",
    },
}
# Models that begin from nothing take larger steps, and more of them.
_OF_MODELS: dict[str, dict[str, Any]] = {
    "marian-tiny": {"epochs": 5.0, "batch_size": 32, "learning_rate": 1e-3},
    "esm-tiny": {"epochs": 6.0, "batch_size": 32, "learning_rate": 1e-3},
}


def own_settings(task: str, model: str | None) -> dict[str, Any]:
    """Returns the defaults of a task, ``model`` among them, and of a model, which go first."""
    settings = {**_USUAL, **_OF_TASKS.get(task, {})}
    return {**settings, **_OF_MODELS.get(model or settings["model"], {})}
