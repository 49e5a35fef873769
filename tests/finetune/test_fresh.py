"""Models made from scratch: protein sequences, and a translator's tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fastattn.data import load
from fastattn.errors import DataError
from fastattn.finetune import FinetuneConfig, finetune
from fastattn.finetune.fresh import make_tokenizer
from fastattn.finetune.model import find_model

SEQUENCES = ["GIGKFLHSAKKFGKAFVGEIMNS", "MAGICWKX"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


@pytest.fixture
def proteins(tmp_path: Path) -> FinetuneConfig:
    """Settings of a run of three steps on peptides."""
    pytest.importorskip("modlamp")
    return FinetuneConfig(
        data="peptides",
        model="esm-tiny",
        output=str(tmp_path / "proteins"),
        train_size=12,
        validation_size=0,
        test_size=8,
        batch_size=4,
        epochs=1.0,
        dropout=0.0,
        compare_steps=0,
        progress=False,
    )


def test_without_dropout_patched_and_stock_learn_the_same(
    proteins: FinetuneConfig, tmp_path: Path
) -> None:
    ours = finetune(proteins)
    assert ours.metrics["patched"] and ours.metrics["baseline_accuracy"] == 0.5
    stock = finetune(replace(proteins, output=str(tmp_path / "stock"), patch=False))
    left, right = weights(ours.output), weights(stock.output)
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(ours.output)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(SEQUENCES[0])["input_ids"])
    assert tokens == ["<cls>", *SEQUENCES[0], "<eos>"]


def test_the_packaged_peptides() -> None:
    pytest.importorskip("modlamp")
    splits = load("peptides")
    assert splits.label_names == ["UniProt", "AMP"]
    assert splits.report["train_rows"]["read"] == 5_200
    assert all(text.isalpha() and text.isupper() for text in splits.train.texts)
    assert not set(splits.train.texts) & set(splits.test.texts)
    with pytest.raises(DataError, match=r"must be left out for the packaged peptides; got 'seq'"):
        load("peptides", text_column="seq")


def test_text_is_no_protein() -> None:
    config = FinetuneConfig(model="esm-tiny")
    make_tokenizer("esm-tiny", SEQUENCES, config)
    with pytest.raises(
        ValueError, match=r"'esm-tiny', which reads sequences of amino acids .*film"
    ):
        make_tokenizer("esm-tiny", [*SEQUENCES, "a film to remember"], config)


def test_a_name_and_not_a_folder() -> None:
    assert [find_model(name) for name in ("esm-tiny", "marian-tiny")] == ["esm-tiny", "marian-tiny"]
