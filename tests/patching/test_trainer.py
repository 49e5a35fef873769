"""The stock Trainer with a patched model and an unchanged collator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import (
    BertTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import fastattn

HEAD = "BertForSequenceClassification"
DROPOUT = dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
pytestmark = [
    # Of Trainer, accelerate and torch, about themselves.
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def examples() -> list[dict[str, Any]]:
    """Sequences of 3 to 20 tokens; the label says whether the first is small."""
    generator = torch.Generator().manual_seed(4)
    made = []
    for _ in range(24):
        length = int(torch.randint(3, 21, (), generator=generator))
        ids = torch.randint(5, 120, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "label": int(ids[0] < 60)})
    return made


@pytest.fixture
def make_trainer(make_bert, all_served, examples, tmp_path, monkeypatch):
    """make_trainer(name, patched, config, **arguments) -> Trainer."""
    # The precision of one Trainer is left to the next one of the process, in two places.
    AcceleratorState._reset_state()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    words = tmp_path / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words.write_text("\n".join([*special, *(f"w{i}" for i in range(115))]))
    tokenizer = BertTokenizer(str(words))

    def make(
        name: str, patched: bool, config: dict[str, Any] | None = None, **arguments: Any
    ) -> Trainer:
        model = make_bert(HEAD, **(config or {}))
        if patched:
            assert all_served(fastattn.patch(model))
        settings: dict[str, Any] = dict(
            output_dir=str(tmp_path / name),
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            per_device_train_batch_size=4,
            max_steps=4,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            seed=11,
        )
        return Trainer(
            model=model,
            args=TrainingArguments(**{**settings, **arguments}),
            train_dataset=examples,
            eval_dataset=examples[:10],
            data_collator=DataCollatorWithPadding(tokenizer),
        )

    return make


def _losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([x.detach().flatten() for x in trainer.model.parameters()])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"gradient_checkpointing": True},
    ],
    ids=["plain", "gradient accumulation", "gradient checkpointing"],
)
def test_the_losses_are_those_of_stock(make_trainer, arguments):
    stock = make_trainer("stock", False, **arguments)
    ours = make_trainer("ours", True, **arguments)
    for trainer in (stock, ours):
        trainer.train()
    assert len(_losses(ours)) == 4
    assert _losses(ours) == pytest.approx(_losses(stock), abs=1e-4)
    torch.testing.assert_close(_weights(ours), _weights(stock), atol=2e-3, rtol=0)
    expected, actual = stock.evaluate(), ours.evaluate()
    assert actual["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-3)
    predictions = [trainer.predict(trainer.eval_dataset).predictions for trainer in (ours, stock)]
    assert predictions[0] == pytest.approx(predictions[1], abs=5e-3)


def test_bf16_autocast(make_trainer):
    stock, ours = make_trainer("stock", False), make_trainer("ours", True, bf16=True)
    for trainer in (stock, ours):
        trainer.train()
    assert _losses(ours) == pytest.approx(_losses(stock), abs=0.05)


def test_resume_from_a_checkpoint(make_trainer):
    """Resuming restores the random state, so dropout goes on where it was."""
    arguments = dict(save_strategy="steps", save_steps=2)
    through = make_trainer("through", True, DROPOUT, **arguments)
    through.train()
    resumed = make_trainer("resumed", True, DROPOUT, **arguments)
    resumed.train(resume_from_checkpoint=f"{through.args.output_dir}/checkpoint-2")
    assert resumed.state.global_step == 4
    assert torch.equal(_weights(resumed), _weights(through))


def test_a_checkpoint_of_the_trainer_is_ordinary(make_trainer, make_batch):
    trainer = make_trainer("saved", True)
    trainer.train()
    trainer.save_model()
    loaded = type(trainer.model).from_pretrained(
        trainer.args.output_dir, attn_implementation="eager"
    )
    batch = make_batch(HEAD)
    torch.testing.assert_close(loaded.eval()(**batch).logits, trainer.model.eval()(**batch).logits)


def test_patching_within_a_run(make_trainer):
    """A callback may patch and unpatch the model while it trains."""

    class Switch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % 2 == 0:
                fastattn.patch(kwargs["model"])
            else:
                fastattn.unpatch(kwargs["model"])

    stock, switched = make_trainer("stock", False), make_trainer("switched", False)
    switched.add_callback(Switch)
    for trainer in (stock, switched):
        trainer.train()
    assert _losses(switched) == pytest.approx(_losses(stock), abs=1e-4)
