"""Runs of translation, tiny: sentences of the grammar, and a model that is made for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import fastattn
from fastattn.errors import DataError
from fastattn.finetune import FinetuneConfig, FinetuneResult, finetune
from fastattn.finetune.demos.english_german import make_pairs
from fastattn.finetune.tasks import get_task
from fastattn.finetune.tasks.base import Encoded, TaskData

NONE = Encoded([], [])  # these baselines are of rows, not of features

pytest.importorskip("sacrebleu")
TASK = get_task("translation")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TSV file with 80 sentences and their translations."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    lines = [f"{pair.source}\t{pair.target}" for pair in make_pairs(80, 0, 0, seed=0)["train"]]
    path.write_text("\n".join(["source\ttarget", *lines]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    """Settings of a run of four steps."""
    return FinetuneConfig(
        task="translation",
        data=str(pairs),
        output=str(tmp_path_factory.mktemp("translation") / "run"),
        test_size=8,
        validation_size=4,
        max_steps=4,
        batch_size=8,
        max_length=20,
        dropout=0.0,
        compare_steps=1,
        progress=False,
    )


@pytest.fixture(scope="module")
def result(config: FinetuneConfig) -> FinetuneResult:
    return finetune(config)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()


def test_figures(result: FinetuneResult) -> None:
    metrics = result.metrics
    assert metrics["metric"] == "bleu"
    assert (metrics["train_pairs"], metrics["test_pairs"], metrics["train_steps"]) == (68, 8, 4)
    for name in ("test_bleu", "test_chrf", "validation_bleu", "baseline_bleu"):
        assert 0 <= metrics[name] <= 100
    assert metrics["baseline"] in ("the source as it is", "always the commonest translation")
    run = json.loads((result.output / "run.json").read_text(encoding="utf-8"))
    assert run["model"] == "marian-tiny"
    assert run["settings"]["learning_rate"] == 1e-3  # the model's own
    assert "Marian" in run["patch"]


def test_the_step_comparison(result: FinetuneResult) -> None:
    compare = result.metrics["compare"]
    assert compare["largest_logit_difference"] < 1e-4
    assert compare["dropout"] == [0.0, 0.0]
    assert [rows for rows, _ in compare["shapes"]] == [8]


def test_the_checkpoint_is_an_ordinary_one(
    result: FinetuneResult, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(TASK.usage(result.output), {})
    assert capsys.readouterr().out.startswith("[")
    tokenizer = AutoTokenizer.from_pretrained(result.output)
    for text in ("Die Ärztin öffnet die Tür.", "Straße 42: 東京"):  # no character is unknown
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    model = AutoModelForSeq2SeqLM.from_pretrained(result.output).eval()
    assert type(model).__module__.startswith("transformers.")
    batch = tokenizer(["The dog sees the cat.", "We sell a car."], padding=True)
    batch = batch.convert_to_tensors("pt")
    with torch.no_grad():
        stock = model.generate(**batch, max_new_tokens=8, num_beams=2)
        fastattn.patch(model)
        assert torch.equal(model.generate(**batch, max_new_tokens=8, num_beams=2), stock)


def test_without_dropout_patched_and_stock_learn_the_same(
    result: FinetuneResult, config: FinetuneConfig, tmp_path: Path
) -> None:
    stock = finetune(replace(config, output=str(tmp_path / "stock"), patch=False, compare_steps=0))
    torch.testing.assert_close(weights(result.output), weights(stock.output), rtol=1e-3, atol=1e-4)
    assert stock.metrics["test_bleu"] == pytest.approx(result.metrics["test_bleu"])


def test_a_run_that_goes_on_from_a_translator(
    result: FinetuneResult, config: FinetuneConfig, tmp_path: Path
) -> None:
    again = replace(config, model=str(result.output), output=str(tmp_path / "more"))
    more = finetune(replace(again, compare_steps=0, num_beams=2))
    assert more.metrics["test_loss"] < result.metrics["test_loss"]
    # The vocabulary is that of the model.
    texts = [(x / "tokenizer.json").read_text(encoding="utf-8") for x in (more[0], result.output)]
    vocabularies = [json.loads(text)["model"]["vocab"] for text in texts]
    assert vocabularies[0] == vocabularies[1]


def test_an_encoder_does_not_translate(config: FinetuneConfig, tiny_bert: Path) -> None:
    for model in ("esm-tiny", str(tiny_bert)):
        with pytest.raises(ValueError, match=r"finetune: model must be one "):
            finetune(replace(config, model=model, output=None))


def test_texts_that_are_no_pairs(config: FinetuneConfig, reviews: Path) -> None:
    with pytest.raises(DataError, match=r"must have a column 'source'; got none"):
        finetune(replace(config, data=str(reviews), output=None))


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ([("a b c d e", "x")], "the source as it is"),
        ([("a", "a b c d f"), ("b", "a b c d f")], "always the commonest translation"),
    ],
)
def test_the_baseline_is_the_better_of_two(train: list[tuple[str, str]], words: str) -> None:
    rows = [{"source": source, "target": target} for source, target in train]
    source = "a b c d e" if words.startswith("the source") else "something else"
    test = [{"source": source, "target": "a b c d e"}]
    baseline = TASK.baseline(TaskData(rows, [], test, [], {}), NONE)
    assert baseline.words == words
    assert baseline.score > 10


def test_the_data_of_its_own() -> None:
    data = TASK.load_data(FinetuneConfig(task="translation"))
    assert [len(part) for part in data[:3]] == [6_000, 100, 400]
    assert not {x["source"] for x in data.train} & {x["source"] for x in data.test}


def test_pairs_that_are_cut_are_told_of(result: FinetuneResult) -> None:
    tokenizer = AutoTokenizer.from_pretrained(result.output)
    rows = [{"source": "a", "target": "b"}, {"source": "a", "target": "b " * 40}]
    encoded = TASK.encode(rows, tokenizer, FinetuneConfig(task="translation", max_length=8))
    assert encoded.notes == ["1 pairs reach 8 tokens, where they are cut (--max-length)"]
    assert max(len(feature["labels"]) for feature in encoded.features) == 8
