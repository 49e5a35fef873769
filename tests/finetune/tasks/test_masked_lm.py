"""Runs on masked text, tiny, and what masks them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, EvalPrediction

from fastattn.finetune import FinetuneConfig, FinetuneResult, finetune
from fastattn.finetune.model import packaged_model_path
from fastattn.finetune.tasks import get_task
from fastattn.finetune.tasks.masked_lm import MaskedLM, MaskingCollator

TEXTS = ["A film to remember, unforgettably acted.", "Hi", "Two hours I will not get back. " * 9]


@pytest.fixture
def config(config: FinetuneConfig) -> FinetuneConfig:
    """Settings of a run of seven steps on some reviews."""
    return replace(config, task="masked-lm", train_size=12, test_size=8, dropout=0.0)


@pytest.fixture
def result(config: FinetuneConfig) -> FinetuneResult:
    return finetune(config)


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(packaged_model_path())


def features(tokenizer: Any, **settings: Any) -> list[dict[str, Any]]:
    config = FinetuneConfig(task="masked-lm", **settings)
    return MaskedLM().encode([{"text": text} for text in TEXTS], tokenizer, config).features


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForMaskedLM.from_pretrained(folder).state_dict()


def test_figures_and_checkpoint(
    config: FinetuneConfig, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = finetune(replace(config, compare_steps=1))
    metrics = result.metrics
    assert 0 <= metrics["test_masked_accuracy"] <= 1
    assert 0 < metrics["baseline_masked_accuracy"] < 0.5
    assert metrics["test_perplexity"] > 1
    assert metrics["compare"]["largest_logit_difference"] < 1e-4
    # The decoder is the word embeddings, as in BERT.
    model = AutoModelForMaskedLM.from_pretrained(result.output)
    assert type(model).__module__.startswith("transformers.")
    embeddings = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embeddings
    before = AutoModelForMaskedLM.from_pretrained(tiny_bert).get_input_embeddings().weight
    assert not torch.equal(embeddings, before)
    exec(get_task("masked-lm").usage(result.output), {})
    assert "token_str" in capsys.readouterr().out


def test_without_dropout_patched_and_stock_learn_the_same(
    result: FinetuneResult, config: FinetuneConfig, tmp_path: Path
) -> None:
    stock = finetune(replace(config, output=str(tmp_path / "stock"), patch=False))
    torch.testing.assert_close(weights(result.output), weights(stock.output), rtol=1e-3, atol=1e-4)
    assert stock.metrics["test_masked_tokens"] == result.metrics["test_masked_tokens"]
    # Another batch size in the evaluation, the same masks: the same figures.
    other = replace(config, output=str(tmp_path / "other"), eval_batch_size=3)
    found = finetune(other).metrics
    for name in ("test_masked_accuracy", "test_perplexity", "baseline_masked_accuracy"):
        assert found[name] == pytest.approx(result.metrics[name], rel=1e-4)


def test_a_classifier_from_an_adapted_model(
    result: FinetuneResult, config: FinetuneConfig, tmp_path: Path
) -> None:
    output = str(tmp_path / "classifier")
    settings = replace(config, task="classification", model=str(result.output), output=output)
    assert 0 <= finetune(settings).metrics["test_accuracy"] <= 1
    run = json.loads((tmp_path / "classifier" / "run.json").read_text(encoding="utf-8"))
    assert run["model"] == str(result.output)


def test_each_set_is_cut_into_tokens_once(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded = MaskedLM.encode, list[int]()

    def counting(self: Any, examples: Any, tokenizer: Any, config: Any) -> Any:
        encoded.append(len(examples))
        return encode(self, examples, tokenizer, config)

    monkeypatch.setattr(MaskedLM, "encode", counting)
    finetune(replace(config, max_steps=1))
    assert sorted(encoded) == [8, 8, 12]


def test_texts_that_are_no_tokens(config: FinetuneConfig, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    # Zero-width spaces, of which the tokenizer makes nothing.
    file.write_text("\n".join("\u200b" * n for n in range(1, 30)), encoding="utf-8")
    before = set(tmp_path.rglob("*"))
    config = replace(config, data=str(file), train_size="all", validation_size=0, test_size=3)
    with pytest.raises(ValueError, match=r"the (test|training) set must hold texts of which the"):
        finetune(config)
    assert set(tmp_path.rglob("*")) == before


def test_a_new_head_is_told_of(result: FinetuneResult, config: FinetuneConfig) -> None:
    task = MaskedLM()
    data = task.load_data(config)
    tokenizer = task.load_tokenizer(config.model, data, config)
    task.load_model(config.model, tokenizer, data, config)
    assert any("no head for masked tokens" in note for note in data.report["notes"])
    adapted = replace(config, model=str(result.output))
    data = task.load_data(adapted)
    task.load_model(adapted.model, tokenizer, data, adapted)
    assert not data.report["notes"]


@pytest.mark.parametrize("whole_words", [False, True])
def test_each_feature_has_a_mask_and_the_seed_decides_which(
    tokenizer: Any, whole_words: bool
) -> None:
    rows = features(tokenizer, max_length=16, whole_words=whole_words)
    random = MaskingCollator(tokenizer, 0.15, whole_words)
    fixed = random.with_seed(3)
    batch = fixed(rows)
    labels = batch["labels"]
    assert (labels != -100).any(dim=1).all()
    special = (batch["attention_mask"] == 0) | torch.isin(
        batch["input_ids"], torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id])
    )
    assert (labels[special] == -100).all()
    assert torch.equal(fixed(rows)["labels"], labels)
    # A row alone, and in another order.
    for index, row in enumerate(rows):
        alone = fixed([row])
        length = alone["labels"].shape[1]
        assert torch.equal(alone["labels"][0], labels[index, :length])
        assert torch.equal(alone["input_ids"][0], batch["input_ids"][index, :length])
    assert not torch.equal(random.with_seed(4)(rows)["labels"], labels)
    assert not torch.equal(random(rows)["labels"], random(rows)["labels"])


def test_whole_words_are_masked_whole(tokenizer: Any) -> None:
    row = features(tokenizer, whole_words=True)[0]
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    inside = [i for i, token in enumerate(tokens) if token.startswith("##")]
    assert inside
    collator = MaskingCollator(tokenizer, 0.3, True)
    seen = set()
    for seed in range(20):
        masked = collator.with_seed(seed).mask(row)
        chosen = [label != -100 for label in masked["labels"]]
        assert all(chosen[i] == chosen[i - 1] for i in inside)
        seen.add(chosen[inside[0]])
    assert seen == {False, True}


def test_long_texts_go_on_in_further_rows(tokenizer: Any) -> None:
    rows = features(tokenizer, max_length=16)
    assert max(len(row["input_ids"]) for row in rows) == 16
    ids = [i for row in rows for i in row["input_ids"][1:-1]]
    assert ids == [
        i for text in TEXTS for i in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]


def test_perplexity_and_accuracy_count_masked_tokens_alone() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]]))
    labels = torch.tensor([[1, -100, 2]])
    task = MaskedLM()
    reduced = task.logits_to_predictions()(logits, labels)
    predictions = tuple(x.numpy() for x in reduced)
    found = task.scorer(None, None)(EvalPrediction(predictions, labels.numpy()))
    assert found["masked_accuracy"] == 0.5
    assert found["perplexity"] == pytest.approx(1 / np.sqrt(0.25 * 0.6))
    assert found["masked_tokens"] == 2


def test_reviews_that_classifiers_are_tested_on_are_not_learned_from() -> None:
    masked = get_task("masked-lm").load_data(FinetuneConfig(task="masked-lm", train_size=2_000))
    tested = get_task("classification").load_data(FinetuneConfig()).test
    assert not {row["text"] for row in masked.train} & {row["text"] for row in tested}


def test_a_model_without_a_mask_token(config: FinetuneConfig) -> None:
    with pytest.raises(ValueError, match=r"model must have a fast tokenizer with a mask token"):
        finetune(replace(config, model="marian-tiny", output=None))


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(f"Sentence number {n}." for n in range(30)), encoding="utf-8")
    data = MaskedLM().load_data(FinetuneConfig(task="masked-lm", data=str(file)))
    assert [len(part) for part in data[:3]] == [24, 3, 3]
