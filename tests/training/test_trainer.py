"""The stock Trainer, and the one with a token budget, on batches without padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import (
    BertTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import fastattn
from fastattn.data.packing import PackedCollator, PackedMaskedLMCollator
from fastattn.integrations.trainer import TokenBudgetTrainer
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

pytestmark = [
    pytest.mark.skipif(not HAS_ATTENTION_INTERFACE, reason="4.x takes no packed batches"),
    # Of Trainer, accelerate and torch, about themselves.
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def tokenizer(tmp_path):
    words = tmp_path / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words.write_text("\n".join([*special, *(f"w{i}" for i in range(115))]))
    return BertTokenizer(str(words))


def _texts(of_tokens: bool) -> list[dict[str, Any]]:
    """Sequences of 3 to 20 tokens, as a tokenizer gives them."""
    generator = torch.Generator().manual_seed(4)
    made = []
    for _ in range(24):
        length = int(torch.randint(3, 21, (), generator=generator))
        ids = torch.randint(5, 120, (length,), generator=generator).tolist()
        labels = {"labels": [x % 2 for x in ids]} if of_tokens else {"label": int(ids[0] < 60)}
        made.append({"input_ids": ids, "attention_mask": [1] * length, **labels})
    return made


@pytest.fixture
def train(tmp_path, monkeypatch):
    """train(model, texts, collator, kind, **arguments) -> the trainer, after its training."""
    AcceleratorState._reset_state()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")

    def run(model: Any, texts: Any, collator: Any, kind: Any = Trainer, **arguments: Any) -> Any:
        own = {x: arguments.pop(x) for x in ("tokens_per_batch", "lengths") if x in arguments}
        resume = arguments.pop("resume", None)
        settings: dict[str, Any] = dict(
            output_dir=str(tmp_path / "run"),
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            per_device_train_batch_size=4,
            num_train_epochs=2,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            seed=11,
        )
        trainer = kind(
            model=model,
            args=TrainingArguments(**{**settings, **arguments}),
            train_dataset=texts,
            eval_dataset=texts[:10],
            data_collator=collator,
            **own,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def _losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _weights(model: Any) -> torch.Tensor:
    return torch.cat([x.detach().flatten() for x in model.parameters()])


@pytest.mark.parametrize("of_tokens", [False, True], ids=["sequences", "tokens"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_packed_batches_train_as_padded_ones_do(tools, train, tokenizer, of_tokens, accumulate):
    head = "BertForTokenClassification" if of_tokens else "BertForSequenceClassification"
    stock, ours = tools.pair(head)
    texts = _texts(of_tokens)
    padding = DataCollatorForTokenClassification if of_tokens else DataCollatorWithPadding
    packing = PackedCollator("token" if of_tokens else "sequence", model=ours)
    settings = dict(gradient_accumulation_steps=accumulate)
    expected = train(stock, texts, padding(tokenizer), **settings)
    actual = train(ours, texts, packing, **settings)
    assert len(_losses(actual)) == 12 // accumulate
    assert _losses(actual) == pytest.approx(_losses(expected), abs=1e-4)
    torch.testing.assert_close(_weights(ours), _weights(stock), atol=2e-3, rtol=0)
    if not of_tokens:
        metrics = [x.evaluate()["eval_loss"] for x in (actual, expected)]
        assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)
        predictions = [x.predict(texts[:10]).predictions for x in (actual, expected)]
        assert predictions[0] == pytest.approx(predictions[1], abs=5e-3)


def test_masked_language_modelling(tools, train, tokenizer):
    model = tools.model("BertForMaskedLM")
    fastattn.patch(model)
    collator = PackedMaskedLMCollator(tokenizer, mlm_probability=0.4, seed=2, model=model)
    losses = _losses(train(model, _texts(False), collator))
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_token_budget(tools, train):
    """As many steps as there are batches, an order for each epoch, and every text seen."""
    model = tools.model()
    fastattn.patch(model)
    texts = _texts(False)
    seen: list[list[tuple[int, ...]]] = []

    class Watching(PackedCollator):
        def __call__(self, features: Any) -> Any:
            seen.append([tuple(x["input_ids"]) for x in features])
            return super().__call__(features)

    trainer = train(model, texts, Watching(), TokenBudgetTrainer, tokens_per_batch=60)
    total = sum(len(x["input_ids"]) for x in texts)
    steps = -(-total // 60)
    assert trainer.state.global_step == 2 * steps
    first, second = seen[:steps], seen[steps : 2 * steps]
    assert first != second
    everything = sorted(tuple(x["input_ids"]) for x in texts)
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == everything  # noqa: RUF017
    assert all(sum(map(len, batch)) < 60 + 20 for batch in first)


def test_a_token_budget_resumes(tools, train, tmp_path):
    """A run that goes on from a checkpoint sees the batches that were left."""
    settings = dict(tokens_per_batch=60, save_strategy="steps", save_steps=2)
    texts = _texts(False)
    through, resumed = (tools.model(dropout=0.1) for _ in range(2))
    fastattn.patch(through)
    fastattn.patch(resumed)
    train(through, texts, PackedCollator(), TokenBudgetTrainer, **settings)
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    train(resumed, texts, PackedCollator(), TokenBudgetTrainer, resume=checkpoint, **settings)
    assert torch.equal(_weights(resumed), _weights(through))
