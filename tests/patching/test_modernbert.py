"""ModernBERT: its inputs are packed, and its windows keep their distances."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import fastattn
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

pytestmark = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="it has an attention interface from Transformers 5 on"
)

HEAD = "ModernBertForSequenceClassification"


def packs(model: Any, batch: dict[str, Any]) -> bool:
    """Whether the layers see the batch as one row."""
    seen: list[int] = []
    handle = model.model.layers[0].register_forward_pre_hook(
        lambda layer, args: seen.append(args[0].shape[0])
    )
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return seen == [1]


def test_the_report(make_bert):
    report = fastattn.patch(make_bert(HEAD))
    assert report.ok
    assert str(report).splitlines()[1:3] == [
        "model                    ModernBertModel      replaced  padding removed once around 2 "
        "layers, kept if a sequence begins with padding, which the head reads, or padding lies "
        "inside a sequence: windows count it",
        "model.layers.*.attn (2)  ModernBertAttention  replaced  runs fastattn.attention",
    ]


@pytest.mark.parametrize(
    ("padding", "is_packed"),
    [("right", True), ("left", False), ("interior", False), ("none", True), ("absent", True)],
)
def test_what_is_packed(make_bert, make_batch, padding, is_packed):
    model = make_bert(HEAD)
    fastattn.patch(model)
    assert packs(model, make_batch(HEAD, padding)) == is_packed


def test_a_mean_over_tokens_reads_no_first_row(make_bert, make_batch, run_step, assert_close):
    stock, ours = (
        make_bert(HEAD, torch.float64, classifier_pooling="mean", num_hidden_layers=2)
        for _ in range(2)
    )
    fastattn.patch(ours)
    batch = make_batch(HEAD, "left")
    assert packs(ours, batch)
    assert_close(run_step(ours, batch), run_step(stock, batch))


def test_masks_that_are_taken_as_they_are(make_bert, make_batch):
    stock, ours = (make_bert("ModernBertModel", torch.float64).eval() for _ in range(2))
    fastattn.patch(ours)
    ids, mask = (make_batch("ModernBertModel")[name] for name in ("input_ids", "attention_mask"))
    full = (mask[:, None, None, :] * torch.ones(13, 1, dtype=torch.long)).bool()
    for given in (
        {"full_attention": full, "sliding_attention": full},
        full,
        torch.zeros_like(mask),  # nothing but padding
    ):
        expected = stock(ids, attention_mask=given).last_hidden_state
        result = ours(ids, attention_mask=given).last_hidden_state
        if torch.is_tensor(given) and not given.any():
            assert result.isfinite().all()
            continue
        torch.testing.assert_close(result, expected)
    torch.testing.assert_close(ours(ids, mask)[0][mask.bool()], stock(ids, mask)[0][mask.bool()])


def test_errors_of_the_model_itself(make_bert):
    model = make_bert("ModernBertModel")
    fastattn.patch(model)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model(torch.ones(1, 3, dtype=torch.long), inputs_embeds=torch.ones(1, 3, 64))


def test_hidden_states_and_tuples(make_bert, make_batch):
    stock, ours = (make_bert("ModernBertModel", torch.float64).eval() for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch("ModernBertModel")
    rows = batch["attention_mask"].bool()
    last, states = ours(**batch, output_hidden_states=True, return_dict=False)
    expected_last, expected = stock(**batch, output_hidden_states=True, return_dict=False)
    torch.testing.assert_close(last[rows], expected_last[rows])
    for x, y in zip(states, expected, strict=True):
        torch.testing.assert_close(x[rows], y[rows])
        assert not x[~rows].any()


def test_a_head_is_added_to_a_patched_body(make_bert, make_batch):
    stock, ours = (make_bert(HEAD, torch.float64).eval() for _ in range(2))
    fastattn.patch(ours.model)
    fastattn.patch(ours)
    batch = make_batch(HEAD, "left")
    torch.testing.assert_close(ours(**batch).logits, stock(**batch).logits)
    hooks = [len(x._forward_pre_hooks) for x in ours.modules()]
    twin = copy.deepcopy(ours)
    fastattn.patch(twin)
    assert [len(x._forward_pre_hooks) for x in twin.modules()] == hooks
    fastattn.unpatch(ours)
    assert not any(x._forward_pre_hooks or x._forward_hooks for x in ours.modules())
