"""A tiny BERT with the packaged tokenizer, and real reviews: runs of a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from fastattn.data.sources import packaged_reviews_path
from fastattn.errors import DataError
from fastattn.finetune import FinetuneConfig
from fastattn.finetune.model import packaged_model_path

NUM_REVIEWS = 60


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BertModel of random weights and a real tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    try:
        tokenizer = AutoTokenizer.from_pretrained(packaged_model_path())
    except ValueError:
        pytest.skip("the packaged model is not installed")
    folder = tmp_path_factory.mktemp("tiny-bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file with 60 real reviews, half of them positive."""
    import pandas as pd

    try:
        table = pd.read_csv(packaged_reviews_path())
    except DataError:
        pytest.skip("the reviews are not installed")
    table = table[table["source"] == "imdb"].groupby("label").head(NUM_REVIEWS // 2)
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    table[["text", "label"]].to_csv(path, index=False)
    return path


@pytest.fixture
def config(tiny_bert: Path, reviews: Path, tmp_path: Path) -> FinetuneConfig:
    """Settings of a run of six steps."""
    return FinetuneConfig(
        data=str(reviews),
        model=str(tiny_bert),
        output=str(tmp_path / "run"),
        train_size=24,
        validation_size=8,
        test_size=16,
        batch_size=4,
        eval_batch_size=8,
        max_length=32,
        compare_steps=0,
        progress=False,
    )
