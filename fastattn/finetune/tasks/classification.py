"""One class a text: sentiment, topics, spam."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, EvalPrediction

from fastattn.data import PACKAGED_IMDB, Texts, load
from fastattn.data.loading import load_packaged
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.tasks.base import (
    Baseline,
    Encoded,
    Example,
    Scorer,
    Task,
    TaskData,
    features_of,
)

# What the packaged reviews train, choose and test on, where the settings do not say: minutes on
# two cores, and an accuracy well above 0.83 whatever the seed: 0.85 after 1,000 texts, 0.87 after
# 1,500, 0.885 after 2,000 (2026-11-24).
_PACKAGED_SIZES = {"train_size": 1_500, "validation_size": 200, "test_size": 1_000}


class Classification(Task):
    """Rows are {"text": str, "label": index of the class}."""

    name = "classification"
    examples = "texts"
    metric = "accuracy"
    further_metrics = ("macro_f1",)
    metric_is_share = True
    can_smooth_labels = True
    augmented_field = "text"
    auto_model = AutoModelForSequenceClassification

    def load_data(self, config: FinetuneConfig) -> TaskData:
        name = config.packaged_data()
        sizes = config.sizes(_PACKAGED_SIZES if name == PACKAGED_IMDB else {})
        if name:
            splits = load_packaged(name, split_seed=config.split_seed, **sizes)
        else:
            splits = load(
                config.data,
                text_column=config.text_column,
                label_column=config.label_column,
                column=config.column,
                data_config=config.data_config,
                split_seed=config.split_seed,
                **sizes,
            )
        return TaskData(
            train=_rows(splits.train),
            validation=_rows(splits.validation),
            test=_rows(splits.test),
            label_names=splits.label_names,
            report=splits.report,
        )

    def encode(
        self, examples: Sequence[Example], tokenizer: Any, config: FinetuneConfig
    ) -> Encoded:
        encoded = tokenizer(
            [row["text"] for row in examples], truncation=True, max_length=config.max_length
        )
        labels = [row["label"] for row in examples]
        return Encoded(examples, features_of({**encoded, "labels": labels}))

    def collator(self, tokenizer: Any, model: Any) -> Any:
        return DataCollatorWithPadding(tokenizer)

    def scorer(self, encoded: Encoded, tokenizer: Any) -> Scorer:
        return _scores

    def baseline(self, data: TaskData, test: Encoded) -> Baseline:
        # The commonest class of the test set itself: no answer without reading does better.
        commonest = max(Counter(row["label"] for row in data.test).values())
        return Baseline(commonest / len(data.test), "always the commonest class")

    def usage(self, folder: Path) -> str:
        return f"""from transformers import pipeline
classify = pipeline('text-classification', {str(folder)!r}, truncation=True)
print(classify(['A film to remember.', 'Two hours I will not get back.']))"""


def _rows(texts: Texts) -> list[Example]:
    pairs = zip(texts.texts, texts.labels, strict=True)
    return [{"text": text, "label": label} for text, label in pairs]


def _scores(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and the mean of the classes' F1, in which a rare class counts as much as others."""
    from sklearn.metrics import f1_score

    answers, targets = prediction.predictions.argmax(-1), prediction.label_ids
    return {
        "accuracy": float(np.mean(answers == targets)),
        "macro_f1": float(f1_score(targets, answers, average="macro", zero_division=0)),
    }
