"""The best model, early stopping, label smoothing, augmentation, curves and the model card."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer

from fastattn.data.augment import augment
from fastattn.finetune import FinetuneConfig, FinetuneResult, finetune
from fastattn.finetune import curves as curves_module
from fastattn.finetune.card import CARD_FILE
from fastattn.finetune.run import evaluate_saved
from fastattn.finetune.tasks.classification import Classification


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def assert_same_weights(left: Path, right: Path) -> None:
    torch.testing.assert_close(weights(left), weights(right), rtol=0, atol=0)


def evaluations(result: FinetuneResult) -> list[tuple[int, float]]:
    rows = [row for row in result.history if "eval_loss" in row]
    return [(row["step"], row["eval_accuracy"]) for row in rows]


@pytest.fixture
def overfitting(config: FinetuneConfig) -> FinetuneConfig:
    """A run whose validation accuracy, of 16 texts, goes up and down."""
    return replace(
        config, validation_size=16, train_size=20, epochs=4.0, eval_steps=2, learning_rate=5e-3
    )


def test_the_best_model_is_kept(overfitting: FinetuneConfig) -> None:
    result = finetune(overfitting)
    scores = evaluations(result)
    best_step, best = max(scores, key=lambda pair: (pair[1], -pair[0]))
    assert [step for step, _ in scores] == [*range(2, 21, 2)]
    assert (result.metrics["kept_step"], result.metrics["validation_accuracy"]) == (best_step, best)
    checkpoints = result.output / "checkpoints"
    assert_same_weights(result.output, checkpoints / f"checkpoint-{best_step}")
    assert {path.name for path in checkpoints.iterdir()} >= {"checkpoint-20"}
    assert len([*checkpoints.iterdir()]) == 2


def test_the_last_model_is_kept_if_asked_for(overfitting: FinetuneConfig) -> None:
    result = finetune(replace(overfitting, keep="last", save_steps=3, epochs=2.0))
    assert result.metrics["kept_step"] == result.metrics["train_steps"] == 10
    assert result.metrics["validation_accuracy"] == evaluations(result)[-1][1]


def test_early_stopping_and_what_a_resumed_run_makes_of_it(
    overfitting: FinetuneConfig, tmp_path: Path
) -> None:
    result = finetune(replace(overfitting, patience=2, epochs=20.0, label_smoothing=0.1, augment=1))
    scores = evaluations(result)
    assert result.metrics["stopped_early"]
    assert result.metrics["train_steps"] == scores[-1][0] < 200
    best = max(score for _, score in scores)
    kept = next(index for index, (_, score) in enumerate(scores) if score == best)
    assert len(scores) == kept + 1 + 2  # two that were no better
    # Killed after it had stopped and before it was saved: nothing is left to train.
    again = tmp_path / "again"
    shutil.copytree(result.output / "checkpoints", again / "checkpoints")
    state = again / "checkpoints" / f"checkpoint-{scores[-1][0]}" / "trainer_state.json"
    state.write_text(
        state.read_text(encoding="utf-8").replace(str(result.output), str(again)), encoding="utf-8"
    )
    settings = replace(overfitting, patience=2, epochs=20.0, label_smoothing=0.1, augment=1)
    resumed = finetune(replace(settings, output=str(again), resume=True))
    assert_same_weights(result.output, again)
    for name in ("kept_step", "train_steps", "test_loss", "validation_accuracy", "stopped_early"):
        assert resumed.metrics[name] == result.metrics[name]


def test_a_validation_set_that_the_data_lacks(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Classification.load_data
    monkeypatch.setattr(
        Classification, "load_data", lambda self, x: load(self, x)._replace(validation=[])
    )
    for change, test in (({"patience": 1}, True), ({}, False)):
        with pytest.raises(ValueError, match=r"must .* validation set"):
            finetune(replace(config, **change), test=test)


def test_label_smoothing_is_the_trainers_own(config: FinetuneConfig, tmp_path: Path) -> None:
    """Of a patched model without padding, and of the stock one, the same."""
    config = replace(config, label_smoothing=0.3, dropout=0.0)
    ours = finetune(config)
    stock = finetune(replace(config, output=str(tmp_path / "stock"), patch=False))
    sharp = finetune(replace(config, output=str(tmp_path / "sharp"), label_smoothing=0.0))
    torch.testing.assert_close(weights(ours.output), weights(stock.output), rtol=1e-3, atol=1e-4)
    assert ours.metrics["train_loss"] == pytest.approx(stock.metrics["train_loss"], rel=1e-4)
    # A model that knows nothing has the same loss either way, but for what six steps taught it.
    assert abs(ours.metrics["train_loss"] - sharp.metrics["train_loss"]) > 1e-5


def test_smoothed_loss_of_a_packed_batch(tiny_bert: Path, tmp_path: Path) -> None:
    """The Trainer takes the labels out of the batch and computes the loss from the logits."""
    import fastattn
    from fastattn.data.packing import PackedCollator
    from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

    if not HAS_ATTENTION_INTERFACE:
        pytest.skip("heads of Transformers 4.x take no packed batches")
    from transformers import DataCollatorWithPadding, TrainingArguments

    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = [
        {"input_ids": tokenizer(text)["input_ids"], "label": index % 2}
        for index, text in enumerate(["A film.", "A much longer review.", "Not for me, I fear."])
    ]
    arguments = TrainingArguments(
        str(tmp_path), label_smoothing_factor=0.2, report_to="none", use_cpu=True
    )
    trainer = Trainer(model, arguments)
    expected = trainer.compute_loss(model, {**DataCollatorWithPadding(tokenizer)(rows)})
    fastattn.patch(model)
    packed = trainer.compute_loss(model, PackedCollator(model=model)(rows))
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-6)


class _Spans(Classification):
    """A task whose labels are no classes."""

    name = "spans"
    can_smooth_labels = False
    augmented_field = None


@pytest.mark.parametrize("change", [{"label_smoothing": 0.1}, {"augment": 2}])
def test_what_a_task_cannot_do_is_refused(change: dict[str, Any]) -> None:
    _Spans().check(FinetuneConfig())
    Classification().check(FinetuneConfig(**change))
    name = next(iter(change))
    with pytest.raises(ValueError, match=rf"{name} must be 0 for the task spans.*Leave --"):
        _Spans().check(FinetuneConfig(**change))


def test_altered_copies() -> None:
    text = "this is not a film that anybody should ever miss , and I did n't like it at all " * 3
    rows = [{"text": text, "label": 1}, {"text": "no", "label": 0}]
    altered = augment(rows, "text", 2, seed=0)
    # A single word has nothing to alter.
    assert altered[:2] == rows and [row["label"] for row in altered[2:]] == [1, 1]
    assert altered == augment(rows, "text", 2, seed=0) != augment(rows, "text", 2, seed=1)
    copies = [row["text"].split() for row in altered[2:]]
    assert copies[0] != copies[1]
    for words in copies:
        assert 0.7 * len(text.split()) < len(words) <= len(text.split())
        assert set(words) <= set(text.split())
        assert [words.count(word) for word in ("not", "n't")] == [3, 3]


def test_only_the_training_set_is_augmented(config: FinetuneConfig, tmp_path: Path) -> None:
    plain = finetune(replace(config, learning_rate=1e-9))
    more = finetune(replace(config, learning_rate=1e-9, augment=2, output=str(tmp_path / "more")))
    assert more.metrics["augmented_texts"] == 48
    assert more.metrics["train_steps"] == 3 * plain.metrics["train_steps"]
    for name in ("train_texts", "test_texts"):
        assert more.metrics[name] == plain.metrics[name]
    # Neither model has learned anything, so on the same sets they do the same.
    assert more.metrics["test_loss"] == pytest.approx(plain.metrics["test_loss"], abs=1e-5)


def test_curves(config: FinetuneConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = finetune(replace(config, epochs=2.0))
    picture = (result.output / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    for name in ("loss", "learning_rate", "tokens_per_second", "eval_loss", "eval_accuracy"):
        steps, values = curves_module.points(result.history, name)
        assert steps and steps == sorted(steps) and len(steps) == len(values)
    events = EventAccumulator(str(result.output / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {f"train/{name}" for name in ("loss", "learning_rate", "tokens_per_second")}
    assert tags >= {"eval/loss", "eval/accuracy"}
    assert not (result.output / "checkpoints" / "runs").exists()


def test_no_tensorboard(config: FinetuneConfig) -> None:
    result = finetune(replace(config, tensorboard=False))
    assert not (result.output / "tensorboard").exists()


@pytest.mark.parametrize(
    ("library", "asked", "message"),
    [
        ("matplotlib", None, r"matplotlib must be installed .*pip install 'fastattn\[finetune\]'"),
        ("tensorboard", True, r"tensorboard must be installed .*pip install 'fastattn\[tensorb"),
    ],
)
def test_a_library_that_is_missing(
    config: FinetuneConfig,
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    asked: bool | None,
    message: str,
) -> None:
    find = curves_module.importlib.util.find_spec
    monkeypatch.setattr(
        curves_module.importlib.util, "find_spec", lambda x: None if x == library else find(x)
    )
    with pytest.raises(ImportError, match=message):
        finetune(replace(config, tensorboard=asked))
    assert not Path(str(config.output)).exists()


def test_the_model_card(config: FinetuneConfig) -> None:
    from huggingface_hub import ModelCard

    result = finetune(config)
    card = ModelCard.load(result.output / CARD_FILE)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-classification"
    score = card.data.eval_results[0]
    assert score.metric_type == "accuracy"
    assert score.metric_value == pytest.approx(result.metrics["test_accuracy"], abs=1e-4)
    for words in ("pipeline('text-classification'", "train 24", "| `--batch-size` | 4 |", "torch "):
        assert words in card.text


def test_a_card_of_the_users_own_is_left_alone(config: FinetuneConfig) -> None:
    folder = Path(str(config.output))
    folder.mkdir()
    (folder / CARD_FILE).write_text("mine", encoding="utf-8")
    finetune(config)
    assert (folder / CARD_FILE).read_text(encoding="utf-8") == "mine"
    (folder / CARD_FILE).unlink()
    for seed in (1, 2):  # the second replaces the card of the first
        finetune(replace(config, overwrite=True, seed=seed))
        assert f"| `--seed` | {seed} |" in (folder / CARD_FILE).read_text(encoding="utf-8")


def test_a_saved_model_is_tested_later(config: FinetuneConfig) -> None:
    result = finetune(config)
    path = result.output / "metrics.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps({k: v for k, v in saved.items() if not k.startswith("test_")}), encoding="utf-8"
    )
    again = evaluate_saved(config, result.output)
    assert again["test_loss"] == pytest.approx(saved["test_loss"], abs=1e-6)
    assert json.loads(path.read_text(encoding="utf-8")).keys() == saved.keys()
