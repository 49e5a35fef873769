"""The settings of a fine-tuning run, their defaults, and their rules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastattn.finetune.defaults import own_settings
from fastattn.finetune.recipes import RECIPES
from fastattn.finetune.tasks import DEFAULT_TASK, TASK_NAMES

Size = int | Literal["all"]

# A default that the task or the model decides.
_OWN: Any = None


@dataclass
class FinetuneConfig:
    """What to train, on what, and how. ``fastattn finetune --help`` describes each field.

    Without ``data``, a task takes its own, which needs no network. Sizes that are None have a
    default that depends on the data: the packaged reviews train on as many as make a good
    classifier in minutes on two cores, other data on all there is (:func:`fastattn.data.load`).
    The model and its recipe, where they are not given, are those of
    :mod:`fastattn.finetune.defaults`. A named recipe (:data:`fastattn.finetune.recipes.RECIPES`)
    goes before all these defaults, and what is given beside it before the recipe:
    ``FinetuneConfig(recipe="imdb", epochs=2)``.
    """

    recipe: str | None = None
    task: str = DEFAULT_TASK
    data: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    column: dict[str, str] = dataclasses.field(default_factory=dict)
    label_columns: str | None = None
    label_separator: str = "|"
    plain_tags: bool = False
    train_size: Size | None = None
    validation_size: Size | None = None
    test_size: Size | None = None
    split_seed: int = 0
    augment: int = 0
    model: str = _OWN
    output: str | None = None
    overwrite: bool = False
    resume: bool = False
    epochs: float = _OWN
    max_steps: int | None = None
    batch_size: int = _OWN
    eval_batch_size: int = _OWN
    learning_rate: float = _OWN
    warmup_ratio: float = 0.1
    warmup_steps: int | None = None
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    dropout: float | None = None
    max_length: int = _OWN
    mlm_probability: float = 0.15
    whole_words: bool = False
    num_beams: int = 1
    truncation_side: str = _OWN
    stride: int | None = None
    max_answer_length: int = 30
    threshold: float = 0.5
    bf16: bool = False
    seed: int = 0
    eval_steps: int | None = None
    patience: int | None = None
    keep: str = "best"
    save_steps: int | None = None
    patch: bool = True
    device: str = "auto"
    threads: int | None = None
    compare_steps: int = 5
    tensorboard: bool | None = None
    progress: bool = True

    def __new__(cls, *args: Any, **given: Any) -> FinetuneConfig:
        config = super().__new__(cls)
        # The rest has its default, which a recipe replaces.
        config.__dict__["_given"] = frozenset(given)
        return config

    def __post_init__(self) -> None:
        given = self.__dict__.pop("_given", ())
        for name, value in RECIPES.get(self.recipe or "", {}).items():
            if name not in given:
                setattr(self, name, value)
        for name, value in own_settings(self.task, self.model).items():
            if getattr(self, name) is None:
                setattr(self, name, value)

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
        if self.patience is not None and (self.keep != "best" or self.validation_size == 0):
            raise ValueError(
                "finetune: patience must be given together with a validation set and with "
                f"keep='best'; got validation_size={self.validation_size!r} and "
                f"keep={self.keep!r}. Leave --patience out to train to the end."
            )

    def sizes(self, defaults: Mapping[str, int]) -> dict[str, Any]:
        """Returns train_size, validation_size and test_size, by name.

        Args:
            defaults: those to use where the settings do not say.
        """
        asked = {
            name: getattr(self, name) for name in ("train_size", "validation_size", "test_size")
        }
        return {name: defaults.get(name) if x is None else x for name, x in asked.items()}

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
    yield "recipe", lambda x: x is None or x in RECIPES, f"one of {', '.join(RECIPES)}"
    yield "task", lambda x: x in TASK_NAMES, f"one of {', '.join(TASK_NAMES)}"
    for field in ("batch_size", "eval_batch_size", "num_beams"):
        yield field, lambda x: _whole(x, 1), "a whole number of at least 1"
    yield "max_answer_length", lambda x: _whole(x, 1), "a whole number of at least 1"
    for field in ("max_steps", "save_steps", "eval_steps", "patience", "threads"):
        yield field, lambda x: x is None or _whole(x, 1), "a whole number of at least 1"
    for field in ("seed", "split_seed", "compare_steps", "augment"):
        yield field, lambda x: _whole(x, 0), "a whole number of at least 0"
    for field in ("warmup_steps", "stride"):
        yield field, lambda x: x is None or _whole(x, 0), "a whole number of at least 0"
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
    yield (
        "label_smoothing",
        lambda x: _number(x) and 0 <= x < 1,
        "at least 0 and below 1 (0.1 is usual)",
    )
    yield "keep", lambda x: x in ("best", "last"), '"best" or "last"'
    yield (
        "mlm_probability",
        lambda x: _number(x) and 0.01 <= x <= 0.9,
        "between 0.01 and 0.9 (0.15 is usual)",
    )
    yield "threshold", lambda x: _number(x) and 0 < x < 1, "a probability above 0 and below 1"
    yield "label_separator", lambda x: isinstance(x, str) and x != "", "a character or more"
    yield "dropout", lambda x: x is None or (_number(x) and 0 <= x < 1), "at least 0 and below 1"
    yield "device", lambda x: x in ("auto", "cpu", "cuda"), '"auto", "cpu" or "cuda"'
    yield "truncation_side", lambda x: x in ("left", "right"), '"left" or "right"'


_RULES: tuple[_Rule, ...] = tuple(_rules())
