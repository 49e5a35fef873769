"""The settings of a fine-tuning run, their defaults, and their rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastattn.finetune.tasks import DEFAULT_TASK, TASK_NAMES

PACKAGED_DATA = "imdb"
PACKAGED_MODEL = "minilm-l6"

Size = int | Literal["all"]


@dataclass
class FinetuneConfig:
    """What to train, on what, and how. ``fastattn finetune --help`` describes each field.

    Sizes that are None have a default that depends on the data: the packaged reviews train on
    as many as make a good classifier in minutes on two cores, other data on all there is
    (:func:`fastattn.data.load`).
    """

    task: str = DEFAULT_TASK
    data: str = PACKAGED_DATA
    text_column: str | None = None
    label_column: str | None = None
    train_size: Size | None = None
    validation_size: Size | None = None
    test_size: Size | None = None
    split_seed: int = 0
    model: str = PACKAGED_MODEL
    output: str | None = None
    overwrite: bool = False
    resume: bool = False
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 8
    eval_batch_size: int = 32
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.1
    warmup_steps: int | None = None
    weight_decay: float = 0.01
    dropout: float | None = None
    max_length: int = 512
    truncation_side: str = "left"
    bf16: bool = False
    seed: int = 0
    save_steps: int | None = None
    patch: bool = True
    device: str = "auto"
    threads: int | None = None
    compare_steps: int = 5
    progress: bool = True

    def check(self) -> None:
        """Raises a ValueError that names the first setting that breaks its rule."""
        for field, allowed, rule in _RULES:
            value = getattr(self, field)
            if not allowed(value):
                raise _error(field, rule, value)
        if self.overwrite and self.resume:
            raise ValueError(
                "finetune: overwrite must not be given together with resume; got both. "
                "Choose to start again or to go on."
            )

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings as plain values."""
        return asdict(self)


def option_name(field: str) -> str:
    """Returns the option of the command line that sets a field."""
    return "--" + field.replace("_", "-")


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**32


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _error(field: str, rule: str, value: Any) -> ValueError:
    return ValueError(
        f"finetune: {field} must be {rule}; got {value!r}. Set it with {option_name(field)}."
    )


_Rule = tuple[str, Callable[[Any], bool], str]


def _rules() -> Iterator[_Rule]:
    yield "task", lambda x: x in TASK_NAMES, f"one of {', '.join(TASK_NAMES)}"
    for field in ("batch_size", "eval_batch_size"):
        yield field, lambda x: _whole(x, 1), "a whole number of at least 1"
    for field in ("max_steps", "save_steps", "threads"):
        yield field, lambda x: x is None or _whole(x, 1), "a whole number of at least 1"
    for field in ("seed", "split_seed", "compare_steps"):
        yield field, lambda x: _whole(x, 0), "a whole number of at least 0"
    yield "warmup_steps", lambda x: x is None or _whole(x, 0), "a whole number of at least 0"
    yield (
        "max_length",
        lambda x: _whole(x, 4),
        "a whole number of at least 4, two special tokens and some text",
    )
    yield "epochs", lambda x: _number(x) and x > 0, "a number above 0"
    yield (
        "learning_rate",
        lambda x: _number(x) and 0 < x <= 1,
        "above 0 and at most 1 (BERT learns between 1e-5 and 5e-4)",
    )
    for field in ("weight_decay", "warmup_ratio"):
        yield field, lambda x: _number(x) and 0 <= x <= 1, "between 0 and 1"
    yield "dropout", lambda x: x is None or (_number(x) and 0 <= x < 1), "at least 0 and below 1"
    yield "device", lambda x: x in ("auto", "cpu", "cuda"), '"auto", "cpu" or "cuda"'
    yield "truncation_side", lambda x: x in ("left", "right"), '"left" or "right"'


_RULES: tuple[_Rule, ...] = tuple(_rules())
