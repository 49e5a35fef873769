"""Whole runs, tiny, on real reviews."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import fastattn
from fastattn.finetune import FinetuneConfig, FinetuneResult, finetune

FIGURES = (
    *("test_accuracy", "test_loss", "validation_accuracy", "train_loss", "train_seconds"),
    *("train_tokens_per_second", "test_seconds", "peak_memory_bytes", "total_seconds"),
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def assert_same_weights(left: Path, right: Path) -> None:
    torch.testing.assert_close(weights(left), weights(right), rtol=0, atol=0)


@pytest.fixture
def result(config: FinetuneConfig) -> FinetuneResult:
    return finetune(config)


def test_figures_and_record(result: FinetuneResult, config: FinetuneConfig) -> None:
    metrics = json.loads((result.output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == result.metrics
    assert all(metrics[name] >= 0 for name in FIGURES)
    assert 0 <= metrics["test_accuracy"] <= 1
    assert (metrics["test_texts"], metrics["train_steps"]) == (16, 6)
    assert 0 < metrics["train_tokens"] <= 24 * 32
    assert metrics["patched"]
    run = json.loads((result.output / "run.json").read_text(encoding="utf-8"))
    assert run["status"] == "finished"
    assert run["settings"] == config.as_dict()
    assert run["data"]["sizes"] == {"train": 24, "validation": 8, "test": 16}
    assert run["versions"]["fastattn"] == fastattn.__version__
    assert set(run["files"]) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert run["command"] and run["cpu"]["model"] and run["patch"]


def test_the_checkpoint_is_an_ordinary_one(result: FinetuneResult, tiny_bert: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(result.output).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.output)
    assert type(model).__module__.startswith("transformers.")
    assert model.config.id2label == {0: "0", 1: "1"}
    assert tokenizer.model_max_length == 32
    before = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    assert model.state_dict().keys() == before.state_dict().keys()
    batch = tokenizer(["A film.", "A much longer review of a film."], padding=True)
    batch = batch.convert_to_tensors("pt")
    with torch.no_grad():
        stock = model(**batch).logits
        fastattn.patch(model)
        torch.testing.assert_close(model(**batch).logits, stock, rtol=1e-4, atol=1e-5)


def test_training_changes_every_weight_that_a_text_uses(
    result: FinetuneResult, tiny_bert: Path
) -> None:
    before = AutoModelForSequenceClassification.from_pretrained(tiny_bert).state_dict()
    after = weights(result.output)
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert not same


def test_the_same_seed_gives_the_same_model(config: FinetuneConfig, tmp_path: Path) -> None:
    first = finetune(config)
    second = finetune(replace(config, output=str(tmp_path / "again")))
    other = finetune(replace(config, output=str(tmp_path / "other"), seed=1))
    assert_same_weights(first.output, second.output)
    assert first.metrics["test_loss"] == second.metrics["test_loss"] != other.metrics["test_loss"]


def test_without_dropout_patched_and_stock_learn_the_same(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    config = replace(config, dropout=0.0)
    ours = finetune(config)
    stock = finetune(replace(config, output=str(tmp_path / "stock"), patch=False))
    assert not stock.metrics["patched"]
    torch.testing.assert_close(weights(ours.output), weights(stock.output), rtol=1e-3, atol=1e-4)


def test_the_step_comparison_says_what_it_measured(config: FinetuneConfig) -> None:
    compare = finetune(replace(config, compare_steps=2)).metrics["compare"]
    assert len(compare["stock_steps_ms"]) == len(compare["fastattn_steps_ms"]) == 2
    assert compare["ratio"] == pytest.approx(compare["stock_step_ms"] / compare["fastattn_step_ms"])
    assert [rows for rows, _ in compare["shapes"]] == [4, 4]
    assert compare["stock_attention"] == "sdpa"
    assert compare["dropout"] == [0.1, 0.1]
    assert compare["largest_logit_difference"] < 1e-5


def test_bfloat16(config: FinetuneConfig) -> None:
    result = finetune(replace(config, bf16=True, compare_steps=1))
    assert result.metrics["compare"]["dtype"] == "bfloat16 autocast"
    assert all(value.dtype == torch.float32 for value in weights(result.output).values())


def test_no_validation_set(config: FinetuneConfig) -> None:
    result = finetune(replace(config, validation_size=0))
    assert result.metrics["validation_accuracy"] is None


def test_results_are_replaced_only_when_asked(config: FinetuneConfig) -> None:
    first = finetune(config)
    mine = first.output / "notes.txt"
    mine.write_text("keep", encoding="utf-8")
    stale = first.output / "checkpoints" / "checkpoint-99"
    stale.mkdir()
    with pytest.raises(ValueError, match=r"output must be a folder without a model or results"):
        finetune(config)
    second = finetune(replace(config, overwrite=True, seed=1))
    assert mine.read_text(encoding="utf-8") == "keep"
    assert not stale.exists()
    assert second.metrics["test_loss"] != first.metrics["test_loss"]


def test_a_longer_run_goes_on_from_the_last_checkpoint(config: FinetuneConfig) -> None:
    first = finetune(config)
    second = finetune(replace(config, resume=True, epochs=2.0))
    assert (first.metrics["resumed_from_step"], second.metrics["resumed_from_step"]) == (0, 6)
    assert second.metrics["train_steps"] == 12
    run = json.loads((second.output / "run.json").read_text(encoding="utf-8"))
    assert len(run["earlier_commands"]) == 1
    with pytest.raises(ValueError, match=r"batch_size must be 4, as in the run to be resumed"):
        finetune(replace(config, resume=True, batch_size=8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(config: FinetuneConfig) -> None:
    with pytest.raises(ValueError, match=r"device must be one that torch can use; got 'cuda'"):
        finetune(replace(config, device="cuda"))


def test_a_tokenizer_of_another_model(
    config: FinetuneConfig, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    torch.manual_seed(0)
    shape = AutoConfig.from_pretrained(tiny_bert)
    shape.vocab_size = 1_000
    AutoModel.from_config(shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"must know all tokens .*; got token .* of 1,000. Use the"
    ):
        finetune(replace(config, model=str(folder)))
    assert not (tmp_path / "run").exists()


def test_texts_of_which_the_tokenizer_knows_nothing(config: FinetuneConfig, tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    rows = (f"{chr(0x10300 + i)},{i % 2}" for i in range(20))
    path.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    sizes: dict[str, Any] = {"train_size": None, "validation_size": None, "test_size": None}
    with pytest.raises(ValueError, match=r"tokenizer makes tokens; got 2 without any that it know"):
        finetune(replace(config, data=str(path), **sizes))
    assert not (tmp_path / "run").exists()


def test_a_training_that_has_diverged_is_told_of(
    config: FinetuneConfig, tiny_bert: Path, tmp_path: Path
) -> None:
    model = AutoModel.from_pretrained(tiny_bert)
    model.encoder.layer[0].output.dense.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "model")
    metrics = finetune(replace(config, model=str(tmp_path / "model"))).metrics
    (note,) = metrics["notes"]
    assert note.startswith("the loss is not a number: training has diverged, and the model is of")


def test_bad_input_leaves_no_trace(config: FinetuneConfig, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    for change in (
        {"data": str(tmp_path / "none.csv")},
        {"model": str(tmp_path / "none")},
        {"train_size": 1000},
        {"max_length": 100},
        {"learning_rate": -1.0},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(change))} must "):
            finetune(replace(config, **change))
    assert set(tmp_path.rglob("*")) == before
