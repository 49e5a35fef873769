"""The settings of a fine-tuning run, their defaults, and their rules."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fastattn.data.sources import check_one_meaning
from fastattn.data.tasks import Layout, check_used, name_columns
from fastattn.environment import MAX_THREADS
from fastattn.finetune.defaults import own_settings
from fastattn.finetune.recipes import RECIPES
from fastattn.finetune.tasks import DEFAULT_TASK, PACKAGED, TASK_NAMES

Size = int | Literal["all"]

# A default that the task or the model decides.
_OWN: Any = None
# Settings that go before others: a recipe must not bring one beside the other that is given.
_GO_BEFORE = {"warmup_steps": "warmup_ratio"}
# Settings that some tasks alone use, beside those of a layout, which knows its own.
_OF_TASKS = {
    "threshold": ("multilabel",),
    "stride": ("question-answering",),
    "max_answer_length": ("question-answering",),
    "mlm_probability": ("masked-lm",),
    "whole_words": ("masked-lm",),
    "num_beams": ("translation",),
}
# Settings that say where data of a user's own keeps what the task needs.
_OF_OWN_DATA = (
    *("data_config", "text_column", "label_column", "column"),
    *("label_columns", "label_separator"),
)


@dataclass
class FinetuneConfig:
    """What to train, on what, and how. ``fastattn finetune --help`` describes each field.

    Without ``data``, a task takes its own, which needs no network. The name of packaged data is
    refused where a file or folder has it too: ``./imdb`` names the folder. Sizes that are None
    have a default that depends on the data: the packaged reviews train on as many as make a good
    classifier in minutes on two cores, other data on all there is (:func:`fastattn.data.load`).
    The model and its recipe, where they are not given, are those of
    :mod:`fastattn.finetune.defaults`. A named recipe (:data:`fastattn.finetune.recipes.RECIPES`)
    goes before all these defaults, and what is given beside it before the recipe:
    ``FinetuneConfig(recipe="imdb", epochs=2)``.
    """

    recipe: str | None = None
    task: str = DEFAULT_TASK
    data: str | None = None
    data_config: str | None = None
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
        for name in ("data", "model", "output"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                setattr(self, name, os.fspath(value))  # run.json holds its name
        for name, value in RECIPES.get(self.recipe or "", {}).items():
            if name not in given and _GO_BEFORE.get(name) not in given:
                setattr(self, name, value)
        for name, value in own_settings(self.task, self.model).items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def check(self) -> None:
        """Raises a ValueError that names the first setting that breaks its rule.

        A setting that the task does not use breaks one, unless it has its default.
        """
        for field, allowed, rule in _RULES:
            value = getattr(self, field)
            if not allowed(value):
                raise _error(field, rule, value)
        for field, tasks in _OF_TASKS.items():
            if self.is_given(field):
                check_used(field, getattr(self, field), self.task, tasks, op="finetune")
        self.layout().check(self.task)
        self._check_packaged()
        if self.overwrite and self.resume:
            raise ValueError(
                "finetune: overwrite must not be given together with resume; got both. "
                "Choose to start again or to go on."
            )
        if self.overwrite and self.output is None:
            raise ValueError(
                "finetune: overwrite must be given together with output; got none, for which a "
                "folder that is free is taken. Name the one to replace with --output, or leave "
                "--overwrite out."
            )
        if self.is_given("compare_steps"):
            check_compared(self.compare_steps, self.patch)
        if self.patience is not None and (self.keep != "best" or self.validation_size == 0):
            raise ValueError(
                "finetune: patience must be given together with a validation set and with "
                f"keep='best'; got validation_size={self.validation_size!r} and "
                f"keep={self.keep!r}. Leave --patience out to train to the end."
            )
        if self.eval_steps is not None and self.validation_size == 0:
            raise ValueError(
                "finetune: eval_steps must be given together with a validation set; got "
                f"{self.eval_steps!r} and validation_size=0. Leave --eval-steps out; --save-steps "
                "says how often to save."
            )

    def _check_packaged(self) -> None:
        data = self.packaged_data()
        # Without --data and in a recipe, packaged data is meant whatever lies here.
        if data and self.data not in (None, RECIPES.get(self.recipe or "", {}).get("data")):
            check_one_meaning(data, self.output)
        for field in _OF_OWN_DATA if data else ():
            if self.is_given(field):
                raise ValueError(
                    f"finetune: {field} must be left out for the packaged data {data!r}; got "
                    f"{getattr(self, field)!r}. Give data of your own with --data, or leave "
                    f"{option_name(field)} out."
                )
        tasks = [task for task, names in PACKAGED.items() if self.data in names]
        if tasks and not data and not Path(self.data or "").exists():
            raise ValueError(
                f"finetune: data must be for the task {self.task}; got the packaged data "
                f"{self.data!r}, which is for {' and '.join(tasks)}. Use --task {tasks[0]}, or "
                "other data."
            )

    def packaged_data(self) -> str | None:
        """Returns the name of the packaged data that is used, None if it is the user's own."""
        names = PACKAGED[self.task]
        data = self.data or names[0]
        return data if data in names else None

    def is_given(self, field: str) -> bool:
        """Whether a field differs from what it is without recipe, task and model."""
        return bool(getattr(self, field) != getattr(_DEFAULTS, field))

    def layout(self) -> Layout:
        """Returns where the data keeps what the task needs.

        Raises:
            DataError: the task has no such column, or the same is said in two ways that differ.
        """
        columns = name_columns(self.task, self.text_column, self.label_column, self.column)
        names = [name.strip() for name in (self.label_columns or "").split(",")]
        return Layout(
            columns,
            label_separator=self.label_separator,
            label_columns=tuple(filter(None, names)),
            plain_tags=self.plain_tags,
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

    def duration(self) -> str:
        """Returns how long is trained, for people."""
        if self.max_steps is not None:
            return f"{self.max_steps:,} step(s)"
        return f"{self.epochs:g} epoch(s)"

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings as plain values."""
        return asdict(self)


def check_compared(compare_steps: int, patch: bool) -> None:
    """Raises a ValueError if a model is to be compared with stock Transformers that is just that.

    Args:
        compare_steps, patch: settings, where the first is given.
    """
    if compare_steps > 0 and not patch:
        raise ValueError(
            "finetune: compare_steps must be left out for a model that is not patched, which is "
            f"stock Transformers itself; got {compare_steps}. Leave --compare-steps or --no-patch "
            "out."
        )


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
    for field in ("max_steps", "save_steps", "eval_steps", "patience"):
        yield field, lambda x: x is None or _whole(x, 1), "a whole number of at least 1"
    yield (
        "threads",
        lambda x: x is None or (_whole(x, 1) and x <= MAX_THREADS),
        f"a whole number of at least 1, and at most {MAX_THREADS:,}",
    )
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
    for field in ("data", "data_config", "text_column", "label_column", "label_columns", "output"):
        yield field, lambda x: x is None or str(x).strip() != "", "a name, or left out"
    yield (
        "label_columns",
        lambda x: x is None or isinstance(x, str),
        'names with commas between them, such as "rude,insult"',
    )
    yield "truncation_side", lambda x: x in ("left", "right"), '"left" or "right"'


_RULES: tuple[_Rule, ...] = tuple(_rules())
_DEFAULTS = FinetuneConfig()
