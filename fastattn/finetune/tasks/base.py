"""What a task is to a run: its data, its model's head, its features, its metric and its baseline.

A run (:mod:`fastattn.finetune.run`) knows none of them by name. To add a task, write a subclass in
a file of its own and name it in ``tasks/__init__.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from fastattn.finetune import fresh
from fastattn.finetune import model as models
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.defaults import FRESH_MODELS

Example = Mapping[str, Any]
Scorer = Callable[[EvalPrediction], dict[str, float]]


class TaskData(NamedTuple):
    """The sets of one data set, each a list of rows in the task's own format.

    ``report`` holds what was read and what was dropped and why, as plain values for JSON:
    ``source``, ``notes``, ``sizes`` by set, and ``<set>_rows`` with what happened to the rows read.
    """

    train: Sequence[Example]
    validation: Sequence[Example]  # empty: none
    test: Sequence[Example]
    label_names: list[str]  # empty: the task has no classes
    report: dict[str, Any]


class Baseline(NamedTuple):
    """The score of an answer that has learned nothing, which a model must beat."""

    score: float
    words: str  # what it answers, such as "always the commonest class"


class Encoded(torch.utils.data.Dataset):
    """Examples as the model reads them: token ids, cut to a length; padding is the collator's.

    An example may become several features (long passages) and features may belong to none.
    ``notes`` say what of the examples the features lack, for people.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        features: list[dict[str, Any]],
        notes: Sequence[str] = (),
    ) -> None:
        self.examples = examples
        self.features = features
        self.notes = notes

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.features[index]

    def num_tokens(self) -> int:
        """Returns the number of tokens, special ones included."""
        return sum(len(feature["input_ids"]) for feature in self.features)


def features_of(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns one feature for each row of the columns that a tokenizer gives."""
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, cells, strict=True)) for cells in rows]


class Task(ABC):
    """A way of fine-tuning. Stateless but for what :meth:`load_data` learned of the data."""

    name: ClassVar[str]
    examples: ClassVar[str]  # what its rows are to a reader, such as "texts"
    # A file of a user's own, and what is in it.
    own_file: ClassVar[tuple[str, str]] = ("mine.csv", "a CSV file")
    columns: ClassVar[str] = "the columns text and label"
    metric: ClassVar[str]  # what is evaluated, and chooses the best checkpoint
    # Other metrics of the scorer that are printed.
    further_metrics: ClassVar[tuple[str, ...]] = ()
    greater_is_better: ClassVar[bool] = True
    # The metric is a share of the examples, and so has the interval of one.
    metric_is_share: ClassVar[bool] = False
    # Labels are single classes in the column "labels", which the Trainer can smooth.
    can_smooth_labels: ClassVar[bool] = False
    # The text of a row that may be altered without altering its labels, for --augment.
    augmented_field: ClassVar[str | None] = None
    trainer_class: ClassVar[type[Trainer]] = Trainer
    arguments_class: ClassVar[type[TrainingArguments]] = TrainingArguments

    def check(self, config: FinetuneConfig) -> None:
        """Raises a ValueError for a setting that this task does not use or cannot serve."""
        if config.label_smoothing > 0 and not self.can_smooth_labels:
            raise ValueError(
                f"finetune: label_smoothing must be 0 for the task {self.name}, whose labels are "
                f"not single classes; got {config.label_smoothing!r}. Leave --label-smoothing out."
            )
        if config.augment > 0 and self.augmented_field is None:
            raise ValueError(
                f"finetune: augment must be 0 for the task {self.name}, whose labels depend on "
                f"single words; got {config.augment!r}. Leave --augment out."
            )

    @abstractmethod
    def load_data(self, config: FinetuneConfig) -> TaskData:
        """Reads and splits the data.

        Raises:
            DataError: it cannot be used; the message says where and what to do.
        """

    @property
    @abstractmethod
    def auto_model(self) -> Any:
        """Transformers' class that loads the model with this task's head."""

    @abstractmethod
    def encode(
        self, examples: Sequence[Example], tokenizer: Any, config: FinetuneConfig
    ) -> Encoded:
        """Returns the features of some examples."""

    @abstractmethod
    def collator(self, tokenizer: Any, model: Any) -> Any:
        """Returns what makes a padded batch of features."""

    @abstractmethod
    def scorer(self, encoded: Encoded, tokenizer: Any) -> Scorer:
        """Returns what computes the metrics of predictions for one set, ``metric`` among them."""

    @abstractmethod
    def baseline(self, data: TaskData, test: Encoded) -> Baseline:
        """Scores an answer that needs no model, learned from ``train``, on ``test``.

        Args:
            test: the features of the test set, for scores that are of features.
        """

    @abstractmethod
    def usage(self, folder: Path) -> str:
        """Returns lines of Python that use the saved model with plain Transformers."""

    def load_tokenizer(self, source: str, data: TaskData, config: FinetuneConfig) -> Any:
        """Returns the tokenizer of the model, learned from the training texts if that is fresh."""
        if source in FRESH_MODELS:
            cells = (value for row in data.train for value in row.values())
            texts = [cell for cell in cells if isinstance(cell, str)]
            return fresh.make_tokenizer(source, texts, config)
        return models.load_tokenizer(source, config)

    def load_model(
        self, source: str, tokenizer: Any, data: TaskData, config: FinetuneConfig
    ) -> Any:
        """Returns the stock model with this task's head, in float32."""
        if source in FRESH_MODELS:
            model_config = fresh.make_config(source, tokenizer, config)
            models.adapt_config(model_config, source, config, self.auto_model, data.label_names)
            return fresh.make_model(source, model_config, self.auto_model)
        model_config = models.load_config(source, config, self.auto_model, data.label_names)
        return models.load_model(source, model_config, self.auto_model)

    def trainer_arguments(self, config: FinetuneConfig) -> dict[str, Any]:
        """Returns the arguments that the Trainer of this task needs beside those of every run."""
        return {}

    def logits_to_predictions(self) -> Callable[[Any, Any], Any] | None:
        """Returns what reduces a batch's logits before they are kept for the scorer, or None."""
        return None
