"""Masked language modelling: adapts a model to texts that nobody has labelled.

A text is a row of its own; one that is longer than ``max_length`` goes on in further rows, so that
all of it is learned from. Texts are not packed into blocks: that saves padding, of which a patched
model has none to compute, and lets neighbours in a block attend to each other, which they do not
when the model is fine-tuned afterwards.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    EvalPrediction,
    Trainer,
)

from fastattn.data import load
from fastattn.data.packing import IGNORED_LABEL
from fastattn.finetune import model as models
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.defaults import FRESH_MODELS
from fastattn.finetune.tasks.base import (
    Baseline,
    Encoded,
    Example,
    Scorer,
    Task,
    TaskData,
    features_of,
)
from fastattn.finetune.tasks.rows import read_data, split_rows

# Classes with a head for masked tokens.
_HEADS = ("ForMaskedLM", "ForPreTraining")
# Of the packaged reviews, where the settings do not say: 150 steps or so.
_PACKAGED_SIZES = {"train_size": 200, "validation_size": 10, "test_size": 60}


class MaskingCollator:
    """Masks tokens of features, at least one of each, and pads them to a batch.

    Which tokens, and by what, is the rule of Transformers' ``DataCollatorForLanguageModeling``.
    A feature without a masked token would have no loss, and a batch of them none that is a number.

    Args:
        seed: where given, the masks of a feature depend on it and on the feature's tokens alone:
            they are the same in every evaluation, in whatever batches. Default: torch's generator
            draws them anew.
    """

    def __init__(
        self, tokenizer: Any, probability: float, whole_words: bool, seed: int | None = None
    ) -> None:
        self._settings = (tokenizer, probability, whole_words)
        self._seed = seed
        words: dict[str, Any] = {"mask_replace_prob": 1.0, "random_replace_prob": 0.0}
        self._masking = DataCollatorForLanguageModeling(
            tokenizer,
            mlm_probability=probability,
            whole_word_mask=whole_words,
            **(words if whole_words else {}),
        )
        self._pad = DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED_LABEL)

    def with_seed(self, seed: int) -> MaskingCollator:
        """Returns a collator whose masks are always the same."""
        return MaskingCollator(*self._settings, seed=seed)

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return self._pad([self.mask(feature) for feature in features])

    def mask(self, feature: dict[str, Any]) -> dict[str, Any]:
        """Returns a feature with masks and labels, as lists."""
        rest = dict(feature)
        special = torch.tensor([rest.pop("special_tokens_mask")])
        offsets = rest.pop("offset_mapping", None)
        ids = torch.tensor([rest["input_ids"]])
        self._masking.generator = None
        if self._seed is not None:
            digest = hashlib.sha256(f"{self._seed}:{rest['input_ids']}".encode()).digest()
            number = int.from_bytes(digest[:8], "big") >> 1
            self._masking.generator = torch.Generator().manual_seed(number)
        while True:
            masked, labels = self._masking.torch_mask_tokens(
                ids.clone(),
                special_tokens_mask=special,
                offset_mapping=None if offsets is None else np.array([offsets]),
            )
            if (labels != IGNORED_LABEL).any():
                return {**rest, "input_ids": masked[0].tolist(), "labels": labels[0].tolist()}


class MaskedLMTrainer(Trainer):
    """Stock Trainer, that evaluates on the same masks every time."""

    data_collator: Any

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        training = self.data_collator
        self.data_collator = training.with_seed(self.args.seed)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training


class MaskedLM(Task):
    """Rows are {"text": str}."""

    name = "masked-lm"
    examples = "texts"
    own_file = ("texts.txt", "a file")
    columns = "a text in each line"
    metric = "masked_accuracy"
    further_metrics = ("perplexity",)
    auto_model = AutoModelForMaskedLM
    trainer_class = MaskedLMTrainer

    def load_data(self, config: FinetuneConfig) -> TaskData:
        self._config = config
        if config.packaged_data():
            return _packaged_reviews(config)
        return split_rows(read_data(config), config, lambda row: row["text"])

    def load_tokenizer(self, source: str, data: TaskData, config: FinetuneConfig) -> Any:
        tokenizer = super().load_tokenizer(source, data, config)
        if tokenizer.mask_token is None or not tokenizer.is_fast:
            raise ValueError(
                "finetune: model must have a fast tokenizer with a mask token to learn from masked "
                f"text; got {type(tokenizer).__name__} of {source}. Use another --model."
            )
        self._tokenizer = tokenizer
        return tokenizer

    def load_model(
        self, source: str, tokenizer: Any, data: TaskData, config: FinetuneConfig
    ) -> Any:
        if source in FRESH_MODELS:
            return super().load_model(source, tokenizer, data, config)
        # Loading names the model for what it becomes.
        heads = models.load_config(source, config, self.auto_model, []).architectures or ()
        model = super().load_model(source, tokenizer, data, config)
        if not any(name.endswith(_HEADS) for name in heads):
            data.report["notes"].append(
                "the model has no head for masked tokens: a new one is learned, whose last layer "
                "is the word embeddings"
            )
            self._start_from_frequencies(model, tokenizer, data)
        return model

    def _start_from_frequencies(self, model: Any, tokenizer: Any, data: TaskData) -> None:
        """Lets a new head begin with the frequencies of the tokens of the training texts.

        Its bias is all that it has to tell frequent words from rare ones, and would need thousands
        of steps to get there.
        """
        bias = getattr(model.get_output_embeddings(), "bias", None)
        if bias is None:
            return
        texts = [row["text"] for row in data.train]
        counts = torch.ones(len(bias))  # of one more of each: no word is impossible
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            counts += torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=len(bias))
        with torch.no_grad():
            bias.copy_((counts / counts.mean()).log())

    def encode(
        self, examples: Sequence[Example], tokenizer: Any, config: FinetuneConfig
    ) -> Encoded:
        encoded = tokenizer(
            [row["text"] for row in examples],
            truncation=True,
            max_length=config.max_length,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
            return_offsets_mapping=config.whole_words,
        )
        encoded.pop("overflow_to_sample_mapping")
        # What the tokenizer takes for white space has nothing to mask.
        features = [x for x in features_of(encoded) if not all(x["special_tokens_mask"])]
        return Encoded(examples, features)

    def collator(self, tokenizer: Any, model: Any) -> MaskingCollator:
        return MaskingCollator(tokenizer, self._config.mlm_probability, self._config.whole_words)

    def trainer_arguments(self, config: FinetuneConfig) -> dict[str, Any]:
        return {"remove_unused_columns": False}  # the collator uses them

    def logits_to_predictions(self) -> Any:
        return _tokens_and_losses

    def scorer(self, encoded: Encoded, tokenizer: Any) -> Scorer:
        return _accuracy_and_perplexity

    def baseline(self, data: TaskData, test: Encoded) -> Baseline:
        # The commonest of the masked tokens themselves: no answer without reading does better.
        collator = self.collator(self._tokenizer, None).with_seed(self._config.seed)
        labels = (collator.mask(feature)["labels"] for feature in test.features)
        counts = Counter(label for row in labels for label in row if label != IGNORED_LABEL)
        (token, count) = counts.most_common(1)[0]
        word = self._tokenizer.convert_ids_to_tokens(token)
        return Baseline(count / counts.total(), f"always the commonest token, {word!r}")

    def usage(self, folder: Path) -> str:
        return f"""from transformers import pipeline
fill = pipeline('fill-mask', {str(folder)!r})
print(fill(f'The plot is {{fill.tokenizer.mask_token}}.'))"""


def _packaged_reviews(config: FinetuneConfig) -> TaskData:
    """The packaged reviews, split as classification splits them.

    So a model that is adapted to them here has not read what a classifier made from it is tested
    on there.
    """
    sizes = config.sizes(_PACKAGED_SIZES)
    splits = load(split_seed=config.split_seed, **sizes)
    train, validation, test = (
        [{"text": text} for text in part.texts]
        for part in (splits.train, splits.validation, splits.test)
    )
    return TaskData(train, validation, test, [], splits.report)


def _tokens_and_losses(logits: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Reduces (batch, seqlen, vocabulary) logits to the likeliest tokens and their losses.

    Where nothing is predicted, both are 0. The loss of a token is in nats.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    chosen = labels != IGNORED_LABEL
    rows, wanted = logits[chosen].float(), labels[chosen]
    tokens, losses = torch.zeros_like(labels), torch.zeros(labels.shape, device=labels.device)
    tokens[chosen] = rows.argmax(-1)
    losses[chosen] = torch.nn.functional.cross_entropy(rows, wanted, reduction="none")
    return tokens, losses


def _accuracy_and_perplexity(prediction: EvalPrediction) -> dict[str, float]:
    tokens, losses = prediction.predictions
    chosen = prediction.label_ids != IGNORED_LABEL
    right = tokens[chosen] == prediction.label_ids[chosen]
    return {
        "masked_accuracy": float(right.mean()),
        "perplexity": float(np.exp(losses[chosen].mean())),
        "masked_tokens": int(chosen.sum()),
    }
