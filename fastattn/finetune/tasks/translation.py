"""One language into another, or any text into another, with an encoder-decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.demos import english_german
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


class Translation(Task):
    """Rows are {"source": str, "target": str}."""

    name = "translation"
    examples = "pairs"
    own_file = ("pairs.tsv", "a TSV file")
    columns = "the columns source and target"
    metric = "bleu"
    can_smooth_labels = True
    further_metrics = ("chrf",)
    auto_model = AutoModelForSeq2SeqLM
    trainer_class = Seq2SeqTrainer
    arguments_class = Seq2SeqTrainingArguments

    def load_data(self, config: FinetuneConfig) -> TaskData:
        # Sources are not to be shared; different ones may well have one translation.
        return split_rows(read_data(config, english_german), config, lambda row: row["source"])

    def encode(
        self, examples: Sequence[Example], tokenizer: Any, config: FinetuneConfig
    ) -> Encoded:
        encoded = tokenizer(
            [row["source"] for row in examples],
            text_target=[row["target"] for row in examples],
            truncation=True,
            max_length=config.max_length,
        )
        features = features_of(encoded)
        longest = (max(len(x["input_ids"]), len(x["labels"])) for x in features)
        cut = sum(length >= config.max_length for length in longest)
        note = f"{cut:,} pairs reach {config.max_length} tokens, where they are cut (--max-length)"
        return Encoded(examples, features, [note] if cut else [])

    def collator(self, tokenizer: Any, model: Any) -> Any:
        return DataCollatorForSeq2Seq(tokenizer, model=model)

    def trainer_arguments(self, config: FinetuneConfig) -> dict[str, Any]:
        return {
            "predict_with_generate": True,
            "generation_max_length": config.max_length,
            "generation_num_beams": config.num_beams,
        }

    def scorer(self, encoded: Encoded, tokenizer: Any) -> Scorer:
        references = [row["target"] for row in encoded.examples]

        def score(prediction: EvalPrediction) -> dict[str, float]:
            # Shorter translations are filled up with -100 where batches are put together.
            ids = np.where(
                prediction.predictions < 0, tokenizer.pad_token_id, prediction.predictions
            )
            found = tokenizer.batch_decode(ids, skip_special_tokens=True)
            return _scores([text.strip() for text in found], references)

        return score

    def baseline(self, data: TaskData, test: Encoded) -> Baseline:
        references = [row["target"] for row in data.test]
        commonest = Counter(row["target"] for row in data.train).most_common(1)[0][0]
        copied = _scores([row["source"] for row in data.test], references)["bleu"]
        constant = _scores([commonest] * len(references), references)["bleu"]
        if constant > copied:
            return Baseline(constant, "always the commonest translation")
        return Baseline(copied, "the source as it is")

    def usage(self, folder: Path) -> str:
        return f"""from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})
model = AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r})
batch = tokenizer(['The old woman does not see my dogs.'], return_tensors='pt')
found = model.generate(**batch, max_new_tokens=64)
print(tokenizer.batch_decode(found, skip_special_tokens=True))"""


def _scores(translations: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU and chrF of a whole set, from 0 to 100."""
    return {
        "bleu": sacrebleu.corpus_bleu(translations, [references]).score,
        "chrf": sacrebleu.corpus_chrf(translations, [references]).score,
    }
