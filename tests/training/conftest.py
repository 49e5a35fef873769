"""A small BERT with random weights, ragged batches for it, and steps of both kinds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import fastattn
from fastattn.data.packing import PackedCollator

SEQUENCES = "BertForSequenceClassification"
TOKENS = "BertForTokenClassification"


def make_model(head: str = SEQUENCES, *, dropout: float = 0.0, **config: Any) -> Any:
    """Makes a model of 2 layers on eager attention; the same weights for the same arguments."""
    torch.manual_seed(0)
    settings = dict(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    model_class = getattr(transformers, head)
    model = model_class(model_class.config_class(**settings | config, attn_implementation="eager"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # trained models have biases
    return model.train()


def make_pair(head: str = SEQUENCES, **settings: Any) -> tuple[Any, Any]:
    """Makes two equal models, stock and patched."""
    stock = make_model(head, **settings)
    ours = copy.deepcopy(stock)
    fastattn.patch(ours)
    return stock, ours


def make_batch(lengths: tuple[int, ...], head: str = SEQUENCES, seed: int = 0) -> dict[str, Tensor]:
    """Makes sequences of these lengths, padded on the right, and what the head scores them by."""
    generator = torch.Generator().manual_seed(seed)
    size = (len(lengths), max(lengths))
    mask = (torch.arange(size[1]) < torch.tensor(lengths)[:, None]).long()
    batch = {
        "input_ids": torch.randint(5, 120, size, generator=generator) * mask,
        "attention_mask": mask,
    }
    of_rows = torch.randint(0, 2, size, generator=generator).masked_fill(mask == 0, -100)
    of_sequences = torch.randint(0, 2, size[:1], generator=generator)
    if head.endswith("QuestionAnswering"):
        return {**batch, "start_positions": of_sequences, "end_positions": of_sequences}
    is_of_rows = head.endswith(("TokenClassification", "MaskedLM"))
    return {**batch, "labels": of_rows if is_of_rows else of_sequences}


def pack(batch: dict[str, Tensor], **options: Any) -> dict[str, Any]:
    """Makes the packed batch of the same sequences, by a collator with these options."""
    rows = batch["attention_mask"].bool()
    features = [
        {
            name: (x[i, rows[i]] if x.ndim > 1 else x[i]).tolist()
            for name, x in batch.items()
            if name != "attention_mask"
        }
        for i in range(len(rows))
    ]
    of_rows = "labels" in batch and batch["labels"].ndim == 2
    return PackedCollator("token" if of_rows else "sequence", **options)(features)


def run_step(called: Any, batch: dict[str, Any], model: nn.Module | None = None) -> list[Tensor]:
    """Returns the loss and every gradient of a step; the model is what is called, or inside it."""
    model = called if model is None else model
    model.zero_grad()
    loss = called(**batch).loss
    loss.backward()
    return [loss.detach(), *(x.grad for x in model.parameters() if x.grad is not None)]


def assert_same(ours: list[Tensor], stock: list[Tensor]) -> None:
    """Compares two float32 steps."""
    assert len(ours) == len(stock) > 1
    torch.testing.assert_close(ours, stock, atol=2e-6, rtol=2e-5)


class Tools:
    """What the tests of this folder share."""

    model: Callable[..., Any] = staticmethod(make_model)
    pair: Callable[..., tuple[Any, Any]] = staticmethod(make_pair)
    batch: Callable[..., dict[str, Tensor]] = staticmethod(make_batch)
    pack: Callable[..., dict[str, Any]] = staticmethod(pack)
    step: Callable[..., list[Tensor]] = staticmethod(run_step)
    assert_same: Callable[..., None] = staticmethod(assert_same)


@pytest.fixture
def tools() -> type[Tools]:
    """Makers of models and batches, and what compares steps."""
    return Tools
