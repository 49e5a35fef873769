"""Several classes a text, or none: topics, emotions, what a message is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, EvalPrediction

from fastattn.data.labels import joined_labels
from fastattn.data.loading import notes_on_labels
from fastattn.data.tasks import label_names
from fastattn.errors import DataError
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.demos import messages
from fastattn.finetune.tasks.base import (
    Baseline,
    Encoded,
    Example,
    Scorer,
    Task,
    TaskData,
    features_of,
)
from fastattn.finetune.tasks.rows import drop_unlabelled, read_data, split_rows


class Multilabel(Task):
    """Rows are {"text": str, "labels": [names]}; each class has a probability of its own."""

    name = "multilabel"
    examples = "texts"
    own_file = ("posts.csv", "a CSV file")
    columns = "the columns text and labels, such as rude|insult"
    metric = "micro_f1"
    augmented_field = "text"
    further_metrics = ("macro_f1", "exact_match")
    auto_model = AutoModelForSequenceClassification

    def load_data(self, config: FinetuneConfig) -> TaskData:
        self._threshold = config.threshold
        found = drop_unlabelled(read_data(config, messages), lambda row: row["labels"])
        data = split_rows(found, config, lambda row: row["text"])
        self._names = label_names({label for row in data.train for label in row["labels"]})
        if not self._names:
            raise DataError(
                f"data: {found.name} must have labels to train on; got none in "
                f"{len(data.train):,} rows. Name their column with --label-column, or their "
                "columns of 0 and 1 with --label-columns."
            )
        _check_labels(data, self._names)
        data.report["notes"] += notes_on_labels(self._names)
        joined = joined_labels(self._names, config.label_separator)
        if joined is not None:
            data.report["notes"].append(
                f"the label {joined!r} seems to be several; --label-separator says what is between "
                "them"
            )
        data.report["notes"] += _unknown_labels(data, set(self._names))
        return data._replace(label_names=self._names)

    def load_model(
        self, source: str, tokenizer: Any, data: TaskData, config: FinetuneConfig
    ) -> Any:
        model = super().load_model(source, tokenizer, data, config)
        # Transformers takes the binary cross entropy of each class from it, and its pipelines
        # the sigmoid.
        model.config.problem_type = "multi_label_classification"
        return model

    def encode(
        self, examples: Sequence[Example], tokenizer: Any, config: FinetuneConfig
    ) -> Encoded:
        texts = [row["text"] for row in examples]
        encoded = tokenizer(texts, truncation=True, max_length=config.max_length)
        targets = _indicators([row["labels"] for row in examples], self._names)
        return Encoded(examples, features_of({**encoded, "labels": targets.tolist()}))

    def collator(self, tokenizer: Any, model: Any) -> Any:
        return DataCollatorWithPadding(tokenizer)

    def scorer(self, encoded: Encoded, tokenizer: Any) -> Scorer:
        # The probability is above the threshold where the logit is above its own.
        least = np.log(self._threshold / (1 - self._threshold))

        def score(prediction: EvalPrediction) -> dict[str, float]:
            return _scores(prediction.label_ids, prediction.predictions > least)

        return score

    def baseline(self, data: TaskData, test: Encoded) -> Baseline:
        """The best of the answers that are the same for every text.

        They are the k commonest classes of the test set itself, for each k.
        """
        counts = Counter(label for row in data.test for label in row["labels"])
        order = [name for name, _ in counts.most_common() if name in self._names]
        targets = _indicators([row["labels"] for row in data.test], self._names)
        scores = []
        for count in range(1, len(order) + 1):
            same = _indicators([order[:count]], self._names)
            answer = np.broadcast_to(same, targets.shape)
            scores.append((_scores(targets, answer)["micro_f1"], count))
        best, count = max(scores, default=(0.0, 0))
        what = "class" if count == 1 else f"{count} classes"
        return Baseline(best, f"always the commonest {what}")

    def usage(self, folder: Path) -> str:
        return f"""from transformers import pipeline
classify = pipeline('text-classification', {str(folder)!r}, top_k=None, truncation=True)
for answer in classify(['Where is my parcel? I want my money back.'])[0]:
    if answer['score'] > {self._threshold}:
        print(answer)"""


def _check_labels(data: TaskData, names: list[str]) -> None:
    """Raises a DataError if every text has every label, from which nothing can be learned."""
    if all(len(row["labels"]) == len(names) for row in data.train):
        raise DataError(
            "data: labels must be such that some texts have them and others do not; got "
            f"{', '.join(names[:8])} for all {len(data.train):,} training texts. Add texts without "
            "them, or name another column with --label-column."
        )


def _unknown_labels(data: TaskData, known: set[str]) -> list[str]:
    notes = []
    for set_name, rows in (("validation", data.validation), ("test", data.test)):
        labels = Counter(label for row in rows for label in row["labels"])
        unknown = sorted(labels.keys() - known)
        if unknown:
            count = sum(labels[name] for name in unknown)
            notes.append(
                f"the {set_name} set has {count:,} labels that the training set lacks and no model "
                f"can learn ({', '.join(unknown[:8])}); they are left out of the score"
            )
    return notes


def _indicators(labels: Sequence[Sequence[str]], names: list[str]) -> np.ndarray[Any, Any]:
    """Returns 1 where a row has a class, float32 of shape (rows, classes)."""
    found = np.zeros((len(labels), len(names)), dtype=np.float32)
    column = {name: index for index, name in enumerate(names)}
    for row, present in enumerate(labels):
        for name in present:
            if name in column:
                found[row, column[name]] = 1
    return found


def _scores(targets: Any, answers: Any) -> dict[str, float]:
    from sklearn.metrics import f1_score

    targets, answers = np.asarray(targets) > 0.5, np.asarray(answers) > 0.5
    return {
        "micro_f1": float(f1_score(targets, answers, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(targets, answers, average="macro", zero_division=0)),
        "exact_match": float(np.mean((targets == answers).all(axis=1))),
    }
