"""Dropout in a patched BERT: on in training only, the same bits padded or packed, the same law."""

from __future__ import annotations

import pytest
import torch

import fastattn

ATTENTION_ONLY = dict(attention_probs_dropout_prob=0.1, hidden_dropout_prob=0.0)
BOTH = dict(attention_probs_dropout_prob=0.1, hidden_dropout_prob=0.1)


def test_evaluation_has_no_dropout(make_bert, make_batch):
    stock = make_bert("BertForSequenceClassification", torch.float64, **BOTH).eval()
    ours = make_bert("BertForSequenceClassification", torch.float64, **BOTH).eval()
    fastattn.patch(ours)
    batch = make_batch("BertForSequenceClassification")
    torch.testing.assert_close(ours(**batch).logits, stock(**batch).logits)
    ours.train()
    assert not torch.equal(ours(**batch).logits, ours(**batch).logits)
    ours.eval()
    assert torch.equal(ours(**batch).logits, ours(**batch).logits)


@pytest.mark.parametrize("name", ["attention_probs_dropout_prob", "hidden_dropout_prob"])
def test_all_may_be_dropped(make_bert, make_batch, run_step, assert_close, any_family, name):
    """Stock takes a probability of 1: nothing of attention, or of a half, is left."""
    head = any_family + "ForSequenceClassification"
    stock, ours = (make_bert(head, **{name: 1.0}) for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch(head)
    assert_close(run_step(ours, batch), run_step(stock, batch))


def test_the_seed_decides(make_bert, make_batch, run_step):
    model = make_bert("BertForSequenceClassification", **BOTH)
    fastattn.patch(model)
    batch = make_batch("BertForSequenceClassification")
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(run_step(model, batch).loss)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BertForMaskedLM"])
def test_padded_and_packed_drop_the_same_weights(
    make_bert, make_batch, run_step, assert_close, head
):
    """The same seed drops the same weights whether padding is there or not."""
    packed, padded = (make_bert(head, torch.float64, **ATTENTION_ONLY) for _ in range(2))
    fastattn.patch(packed)
    fastattn.patch(padded, unpad=False)
    batch = make_batch(head)
    steps = []
    for model in (packed, padded):
        torch.manual_seed(7)
        steps.append(run_step(model, batch))
    assert_close(*steps)
    torch.manual_seed(8)
    assert not torch.equal(run_step(packed, batch).loss, steps[0].loss)


def test_the_law_is_that_of_stock(make_bert, make_batch, any_family):
    """Mean and spread of the logits under dropout agree with the stock model's."""
    num_draws = 200
    batch = make_batch(any_family + "ForSequenceClassification")
    draws = []
    for patched in (False, True):
        model = make_bert(any_family + "ForSequenceClassification", **BOTH)
        if patched:
            fastattn.patch(model)
        with torch.no_grad():
            logits = [model(**batch).logits.flatten() for _ in range(num_draws)]
        draws.append(torch.stack(logits).double())
    stock, ours = draws
    # The difference of two means of n draws has this standard error; 5 of them never happen.
    standard_error = ((stock.var(dim=0) + ours.var(dim=0)) / num_draws).sqrt()
    assert ((stock.mean(dim=0) - ours.mean(dim=0)).abs() < 5 * standard_error).all()
    # The spread of n draws is known to about 1 / sqrt(2 n); the ratio of two, to 1 / sqrt(n).
    ratio = ours.std(dim=0) / stock.std(dim=0)
    assert ((ratio - 1).abs() < 6 / num_draws**0.5).all()
