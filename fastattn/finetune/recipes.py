"""Named recipes: sets of defaults for a whole run, which single settings override."""

from __future__ import annotations

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    # Transformers' own guide to fine-tuning on IMDB, which papers and courses repeat; what it
    # leaves to the Trainer (learning rate, linear decay) is the Trainer's default. The packaged
    # reviews have no test set of their own: 2,500 for each choice, 20,000 to train on.
    "imdb": {
        "data": "imdb",
        "train_size": "all",
        "validation_size": 2_500,
        "test_size": 2_500,
        "epochs": 3.0,
        "batch_size": 16,
        "eval_batch_size": 64,
        "learning_rate": 5e-5,
        "warmup_steps": 500,
        "weight_decay": 0.01,
        "max_length": 512,
        "truncation_side": "right",
    },
}


def describe(name: str) -> str:
    """Returns what a recipe sets, as options of the command line."""
    return " ".join(
        f"--{field.replace('_', '-')} {value:g}"
        if isinstance(value, float)
        else f"--{field.replace('_', '-')} {value}"
        for field, value in RECIPES[name].items()
    )
